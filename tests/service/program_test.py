#!/usr/bin/env python3
"""turboquant-server and the commands of turboquant-index that use it, as programs.

Usage: program_test.py SERVER_PROGRAM INDEX_PROGRAM DATA_FOLDER. Standard library alone; the test
with TLS is skipped where there is no `openssl` program.
"""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import unittest
import urllib.request


def write_fbin(path: str, rows: list[list[float]]) -> None:
    with open(path, "wb") as file:
        file.write(struct.pack("<II", len(rows), len(rows[0])))
        for row in rows:
            file.write(struct.pack(f"<{len(row)}f", *row))


def read_fbin(path: str) -> list[tuple[float, ...]]:
    with open(path, "rb") as file:
        data = file.read()
    rows, dimension = struct.unpack_from("<II", data)
    return [struct.unpack_from(f"<{dimension}f", data, 8 + 4 * dimension * i) for i in range(rows)]


class ProgramTest(unittest.TestCase):
    server_program = ""
    index_program = ""
    data = ""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.server: subprocess.Popen | None = None
        self.address = ""

    def tearDown(self) -> None:
        if self.server is not None:
            self.stop()

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def start(self, *options: str, data: str = "data", host: str = "127.0.0.1") -> None:
        command = [self.server_program, "--data-dir", self.path(data), "--listen", "127.0.0.1:0"]
        with open(self.path("log"), "a", encoding="utf-8") as log:
            self.server = subprocess.Popen(
                [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True
            )
        line = self.server.stdout.readline()
        found = re.search(r"port (\d+)", line)
        self.assertTrue(found, self.log())
        self.address = f"{host}:{found.group(1)}"

    def stop(self) -> None:
        self.server.send_signal(signal.SIGTERM)
        status = self.server.wait(timeout=600)
        self.server.stdout.close()
        self.server = None
        self.assertEqual(status, 0, self.log())

    def log(self) -> str:
        with open(self.path("log"), encoding="utf-8") as file:
            return file.read()

    def index(self, *words: str, status: int = 0, **environment: str) -> str:
        result = subprocess.run(
            [self.index_program, *words],
            env={**os.environ, "TURBOQUANT_SERVER": self.address, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def push(self, *options: str, status: int = 0) -> str:
        return self.index("push", "--progress", "none", *options, status=status)

    def query(self, *options: str) -> list[dict]:
        lines = self.index("query", "--json", *options).splitlines()
        return [json.loads(line) for line in lines]

    def test_words(self) -> None:
        self.start()
        base = os.path.join(self.data, "base.npy")
        texts = os.path.join(self.data, "base.txt")
        manifest = self.path("push.json")
        words = ("--collection", "words", "--metric", "cosine", "--factory", "TQ3")
        self.push("--create", *words, "--input", base, "--text", texts, "--manifest", manifest)
        self.assertFalse(os.path.exists(manifest))
        with open(texts, encoding="utf-8") as file:
            lines = file.read().splitlines()
        found = self.query(
            "-c", "words", "--queries", os.path.join(self.data, "queries.npy"), "-k", "3"
        )
        self.assertEqual(len(found), 200)
        right = [i for i, one in enumerate(found) if i in [hit["id"] for hit in one["hits"]]]
        self.assertGreater(len(right), 180)
        for one in found:
            for hit in one["hits"]:
                self.assertEqual(hit["metadata"]["text"], lines[hit["id"]])
        self.assertIn("words: 5000 records of dimension 384", self.index("collections", "list"))

    def collections(self) -> dict[str, dict]:
        lines = self.index("collections", "list", "--json").splitlines()
        return {one["name"]: one for one in map(json.loads, lines)}

    @unittest.skipIf(os.environ.get("TURBOQUANT_WITH_ZSTD") == "0", "built without zstd")
    def test_packed_collections(self) -> None:
        base = os.path.join(self.data, "base.npy")
        common = ("--create", "--metric", "cosine", "--input", base, "--manifest", self.path("m"))
        self.push(*common, "-c", "loaded", "--pack", "--data-dir", self.path("data"))
        self.start("--backup-dir", self.path("backups"))
        self.push(*common, "-c", "plain")
        self.push(*common, "-c", "pushed", "--pack")
        self.index(
            *("collections", "create", "made", "--dimension", "384"),
            *("--metric", "cosine", "--pack"),
        )
        self.push(*common, "-c", "made")
        packed = ("loaded", "pushed", "made")

        def check() -> None:
            found = self.collections()
            self.assertEqual(found["plain"]["packed"], False)
            for name in packed:
                self.assertEqual(found[name]["packed"], True)
                self.assertEqual(found[name]["records"], 5000)
                saved = 1 - found[name]["block_bytes"] / found["plain"]["block_bytes"]
                self.assertGreater(saved, 0.04)
                self.assertLess(saved, 0.07)
            queries = ("--queries", os.path.join(self.data, "queries.npy"))
            expected = self.query("-c", "plain", *queries)
            self.assertEqual(len(expected), 200)
            for name in packed:
                self.assertEqual(self.query("-c", name, *queries), expected)
            listing = self.index("collections", "list")
            self.assertEqual(listing.count("packed on disk"), len(packed))

        check()
        snapshot = self.index("snapshot", "create").strip()
        self.stop()
        self.start("--backup-dir", self.path("backups"))
        check()
        for name in packed:
            self.index("collections", "drop", name)
        self.index("snapshot", "restore", snapshot)
        check()

    def test_metadata_ids_and_filters(self) -> None:
        self.start()
        rows = [[float(i), 1.0, 0.0, 2.0] for i in range(1, 51)]
        write_fbin(self.path("x.fbin"), rows)
        with gzip.open(self.path("x.jsonl.gz"), "wt", encoding="utf-8") as file:
            for i in range(50):
                name = f"row {i}" if i % 2 else i
                file.write(json.dumps({"key": name, "year": 1950 + i, "w": i, "none": None}) + "\n")
        self.push(
            "-c",
            "c",
            "--create",
            "--metric",
            "l2",
            "--originals",
            "fp32",
            "--field",
            "year:int",
            "--field",
            "w:double",
            "-i",
            self.path("x.fbin"),
            "--metadata",
            self.path("x.jsonl.gz"),
            "--id-field",
            "key",
        )
        condition = json.dumps({"range": {"year": {"gte": 1990}}})
        found = self.query(
            "-c",
            "c",
            "--queries",
            self.path("x.fbin"),
            "--limit",
            "1",
            "-k",
            "50",
            "--filter",
            condition,
            "--exact",
        )
        hits = found[0]["hits"]
        self.assertEqual([hit["metadata"]["year"] for hit in hits], list(range(1990, 2000)))
        self.assertEqual(hits[0]["id"], 40)
        self.assertEqual(hits[1]["id"], "row 41")
        self.assertEqual(hits[0]["metadata"]["w"], 40.0)
        self.assertNotIn("none", hits[0]["metadata"])
        self.index("query", "-c", "c", "--queries", self.path("x.fbin"), "--filter", "{", status=2)

        out = self.index(
            "export",
            "-c",
            "c",
            "-o",
            self.path("y.fbin"),
            "--ids",
            self.path("y.ids"),
            "--metadata",
            self.path("y.jsonl"),
            "--progress",
            "none",
        )
        self.assertIn("50 records", out)
        with open(self.path("y.ids"), encoding="utf-8") as file:
            ids = [json.loads(line) for line in file]
        self.assertEqual(ids[:3], [0, 2, 4])
        exported = dict(zip(map(str, ids), read_fbin(self.path("y.fbin"))))
        for i in range(50):
            self.assertEqual(exported[f"row {i}" if i % 2 else str(i)], tuple(rows[i]))

    def test_bad_rows(self) -> None:
        self.start()
        rows = [[float(i + 1), 1.0] for i in range(20)]
        rows[7][0] = float("nan")
        rows[13] = [0.0, 0.0]
        write_fbin(self.path("x.fbin"), rows)
        common = (
            "-c",
            "c",
            "-i",
            self.path("x.fbin"),
            "--create",
            "--metric",
            "cosine",
            "--batch-rows",
            "5",
            "--manifest",
            self.path("m"),
        )
        self.assertIn("nothing written", self.push(*common, "--dry-run", "--on-bad-row", "skip"))
        self.assertEqual(self.index("collections", "list"), "")
        self.assertIn("row 7", self.push(*common, status=3))
        out = self.push(*common, "--resume", "--on-bad-row", "quarantine")
        self.assertIn("2 bad rows", out)
        self.assertIn("c: 18 records", self.index("collections", "list"))
        with open(self.path("m.rejected.jsonl"), encoding="utf-8") as file:
            self.assertEqual([json.loads(line)["row"] for line in file], [7, 13])

    def test_killed_and_resumed(self) -> None:
        self.start()
        rows = [[float(i % 97), float(i % 31), 1.0, float(i)] for i in range(8_000)]
        write_fbin(self.path("x.fbin"), rows)
        common = [
            "push",
            "--progress",
            "none",
            "-i",
            self.path("x.fbin"),
            "--create",
            "--insert",
            "--batch-rows",
            "50",
        ]
        self.index(*common, "-c", "whole")
        kills = 0
        for attempt in range(30):
            child = subprocess.Popen(
                [self.index_program, *common, "-c", "parts", "--resume"],
                env={**os.environ, "TURBOQUANT_SERVER": self.address},
                stdout=subprocess.DEVNULL,
            )
            try:
                self.assertEqual(child.wait(timeout=0.02 * 1.3**attempt), 0)
                break
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                kills += 1
                # The manifest goes when all is done, so that another push would be a new one.
                done = "parts: 8000 records" in self.index("collections", "list")
                if done and not os.path.exists(self.path("x.fbin.parts.push.json")):
                    break
        self.assertGreater(kills, 0, "it was never killed")
        for name in ("whole", "parts"):
            self.index(
                "export",
                "-c",
                name,
                "-o",
                self.path(f"{name}.fbin"),
                "--ids",
                self.path(f"{name}.ids"),
                "--progress",
                "none",
            )
        for kind in ("fbin", "ids"):
            with (
                open(self.path(f"whole.{kind}"), "rb") as a,
                open(self.path(f"parts.{kind}"), "rb") as b,
            ):
                self.assertTrue(a.read() == b.read(), kind)

    def test_snapshots_collections_and_aliases(self) -> None:
        self.start()
        self.index("collections", "create", "c", "--dimension", "2")
        self.index("collections", "alias", "now", "c")
        self.assertIn("now -> c", self.index("collections", "list"))
        name = self.index("snapshot", "create").strip()
        self.index("snapshot", "verify", name)
        self.index("collections", "unalias", "now")
        self.index("collections", "drop", "c")
        self.index("snapshot", "restore", name)
        self.assertIn("now -> c", self.index("collections", "list"))
        self.assertIn(name, self.index("snapshot", "list"))
        self.index("snapshot", "delete", name)
        self.assertIn("SNAPSHOT_NOT_FOUND", self.index("snapshot", "verify", name, status=2))

    def test_without_a_server(self) -> None:
        write_fbin(self.path("x.fbin"), [[float(i + 1), 1.0] for i in range(100)])
        self.push("--data-dir", self.path("data"), "-c", "c", "--create", "-i", self.path("x.fbin"))
        self.start()
        self.assertIn("c: 100 records", self.index("collections", "list"))

    def test_metrics_and_configuration(self) -> None:
        with open(self.path("config"), "w", encoding="utf-8") as file:
            file.write('metrics-listen = "127.0.0.1:0"\nmax-k = 5\n')
        with open(self.path("log"), "a", encoding="utf-8"):
            pass
        port = self.free_port()
        self.start("--config", self.path("config"), "--metrics-listen", f"127.0.0.1:{port}")
        self.index("collections", "create", "c", "--dimension", "2")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=600) as answer:
            text = answer.read().decode()
        self.assertIn('turboquant_collection_records{collection="c"} 0', text)
        self.assertIn("turboquant_request_seconds_bucket", text)
        write_fbin(self.path("q.fbin"), [[1.0, 2.0]])
        out = self.index("query", "-c", "c", "--queries", self.path("q.fbin"), "-k", "6", status=2)
        self.assertIn("not between 1 and 5", out)

    def test_refuses_to_be_exposed(self) -> None:
        result = subprocess.run(
            [self.server_program, "--data-dir", self.path("data"), "--listen", "0.0.0.0:0"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(result.returncode, 2)
        self.assertIn("--insecure", result.stderr)

    def test_a_second_server_on_the_same_store_is_refused(self) -> None:
        self.start()
        result = subprocess.run(
            [self.server_program, "--data-dir", self.path("data"), "--listen", "127.0.0.1:0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("another process", result.stderr)

    @unittest.skipUnless(shutil.which("openssl"), "no openssl program")
    def test_tls_and_tokens(self) -> None:
        for name in ("server", "client"):
            subprocess.run(
                [
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-nodes",
                    "-days",
                    "2",
                    "-subj",
                    "/CN=localhost",
                    "-addext",
                    "subjectAltName=DNS:localhost",
                    "-keyout",
                    self.path(f"{name}.key"),
                    "-out",
                    self.path(f"{name}.pem"),
                ],
                check=True,
                capture_output=True,
            )
        made = subprocess.run(
            [self.server_program, "token", "--name", "ops", "--role", "admin"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        token = made[0].removeprefix("token: ")
        with open(self.path("tokens"), "w", encoding="utf-8") as file:
            file.write(made[2] + "\n")
        self.start(
            "--tls-cert",
            self.path("server.pem"),
            "--tls-key",
            self.path("server.key"),
            "--tls-client-ca",
            self.path("client.pem"),
            "--tokens",
            self.path("tokens"),
            host="localhost",
        )
        trust = ("--ca", self.path("server.pem"))
        show = ("--cert", self.path("client.pem"), "--key", self.path("client.key"))
        listing = ("collections", "list")
        self.assertEqual(self.index(*listing, *trust, *show, TURBOQUANT_TOKEN=token), "")
        self.assertIn("BAD_TOKEN", self.index(*listing, *trust, *show, status=2))
        self.index(*listing, *trust, status=4, TURBOQUANT_TOKEN=token)  # shows no certificate
        self.index(*listing, status=4, TURBOQUANT_TOKEN=token)  # speaks no TLS

    @staticmethod
    def free_port() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]


if __name__ == "__main__":
    ProgramTest.data = sys.argv.pop(3)
    ProgramTest.index_program = sys.argv.pop(2)
    ProgramTest.server_program = sys.argv.pop(1)
    unittest.main(verbosity=2)
