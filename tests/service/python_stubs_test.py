#!/usr/bin/env python3
"""Drives turboquant-server with stubs that grpcio-tools generates from proto/, without our client.

Usage: python_stubs_test.py SERVER_PROGRAM PROTO_FOLDER. Exits with 77 (skipped) where grpcio,
grpcio-tools, grpcio-reflection or grpcio-health-checking is not installed.
"""

import importlib
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

try:
    import grpc
    from google.protobuf import descriptor_pool
    from google.rpc import error_details_pb2
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )
    from grpc_status import rpc_status
    from grpc_tools import protoc
except ImportError as error:
    print(
        f"skipped: {error}; pip install grpcio-tools grpcio-reflection grpcio-status "
        "grpcio-health-checking"
    )
    sys.exit(77)

DIMENSION = 8


def generate(proto_folder: str, target: str) -> None:
    """Stubs of all files, importable from then on."""
    files = sorted(os.listdir(os.path.join(proto_folder, "turboquant", "v1")))
    names = [f"turboquant/v1/{name}" for name in files if name.endswith(".proto")]
    well_known = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    status = protoc.main(
        [
            "protoc",
            f"-I{proto_folder}",
            f"-I{well_known}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            *names,
        ]
    )
    assert status == 0
    # A package, not a namespace: the Python package of this project may be installed too.
    for folder in ("turboquant", "turboquant/v1"):
        with open(os.path.join(target, folder, "__init__.py"), "w", encoding="utf-8"):
            pass
    sys.path.insert(0, target)


def reason_of(error: "grpc.RpcError") -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None and status.details[0].Unpack(info)
    assert info.domain == "turboquant"
    return info.reason


class PythonStubsTest(unittest.TestCase):
    program = ""
    proto_folder = ""

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        stubs = os.path.join(cls.folder.name, "stubs")
        os.mkdir(stubs)
        generate(cls.proto_folder, stubs)
        cls.types = importlib.import_module("turboquant.v1.types_pb2")
        cls.search = importlib.import_module("turboquant.v1.search_service_pb2")
        cls.admin = importlib.import_module("turboquant.v1.admin_service_pb2")
        search_grpc = importlib.import_module("turboquant.v1.search_service_pb2_grpc")
        admin_grpc = importlib.import_module("turboquant.v1.admin_service_pb2_grpc")
        command = [
            cls.program,
            "--data-dir",
            os.path.join(cls.folder.name, "data"),
            "--listen",
            "127.0.0.1:0",
        ]
        cls.server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = cls.server.stdout.readline()
        cls.channel = grpc.insecure_channel("127.0.0.1:" + re.search(r"port (\d+)", line).group(1))
        cls.searching = search_grpc.SearchServiceStub(cls.channel)
        cls.administering = admin_grpc.AdminServiceStub(cls.channel)
        options = cls.admin.CollectionOptions(
            dimension=DIMENSION,
            metric=cls.admin.METRIC_L2,
            fields=[cls.admin.FieldSchema(name="word", type=cls.types.FIELD_TYPE_STRING)],
        )
        cls.administering.CreateCollection(
            cls.admin.CreateCollectionRequest(name="words", options=options)
        )

    @classmethod
    def tearDownClass(cls) -> None:
        cls.channel.close()
        cls.server.send_signal(signal.SIGTERM)
        status = cls.server.wait(timeout=600)
        cls.server.stdout.close()
        cls.folder.cleanup()
        assert status == 0, f"the server ended with {status}"

    def batch(self, words: list[str]):
        rows = [[float(len(word)), float(ord(word[0]))] + [1.0] * (DIMENSION - 2) for word in words]
        return self.search.RecordBatch(
            ids=[self.types.RecordId(name=word) for word in words],
            vectors=self.types.Vectors(
                data=b"".join(struct.pack(f"<{DIMENSION}f", *row) for row in rows)
            ),
            metadata=[
                self.types.Metadata(fields={"word": self.types.Value(string_value=word)})
                for word in words
            ],
        )

    def test_write_and_search(self) -> None:
        words = ["ant", "zebra", "hippopotamus"]
        result = self.searching.Upsert(
            self.search.UpsertRequest(collection="words", batch=self.batch(words))
        ).result
        self.assertEqual(result.inserted + result.updated, 3)
        query = [5.0, float(ord("z"))] + [1.0] * (DIMENSION - 2)
        answer = self.searching.Search(
            self.search.SearchRequest(
                collection="words",
                queries=self.types.Vectors(values=query),
                k=1,
                parts=self.types.Parts(metadata=True),
            )
        )
        hit = answer.results[0].hits[0]
        self.assertEqual(hit.id.name, "zebra")
        self.assertEqual(hit.metadata.fields["word"].string_value, "zebra")

    def test_bulk_stream(self) -> None:
        requests = [
            self.search.BulkAddRequest(
                collection=name, sequence=i, batch=self.batch([f"stream-{i}", f"more-{i}"])
            )
            for i, name in enumerate(["words", "absent", "words"])
        ]
        answers = list(self.searching.BulkAdd(iter(requests)))
        self.assertEqual([a.sequence for a in answers], [0, 1, 2])
        self.assertEqual([a.error.reason for a in answers], ["", "COLLECTION_NOT_FOUND", ""])

    @unittest.skipIf(os.environ.get("TURBOQUANT_WITH_ZSTD") == "0", "built without zstd")
    def test_packed_collection(self) -> None:
        rows = 5000
        numbers = random.Random(1)
        data = struct.pack(
            f"<{rows * DIMENSION}f", *(numbers.gauss(0, 1) for _ in range(rows * DIMENSION))
        )
        batch = self.search.RecordBatch(
            ids=[self.types.RecordId(number=i) for i in range(rows)],
            vectors=self.types.Vectors(data=data),
        )
        infos, answers = [], []
        for name, pack in (("plain", False), ("packed", True)):
            options = self.admin.CollectionOptions(
                dimension=DIMENSION, metric=self.admin.METRIC_INNER_PRODUCT, pack_codes=pack
            )
            self.administering.CreateCollection(
                self.admin.CreateCollectionRequest(name=name, options=options)
            )
            self.searching.Upsert(self.search.UpsertRequest(collection=name, batch=batch))
            infos.append(
                self.administering.GetCollection(
                    self.admin.GetCollectionRequest(name=name)
                ).collection
            )
            answers.append(
                self.searching.Search(
                    self.search.SearchRequest(
                        collection=name,
                        queries=self.types.Vectors(data=data[: 4 * 10 * DIMENSION]),
                        k=10,
                    )
                )
            )
        self.assertEqual([info.options.pack_codes for info in infos], [False, True])
        self.assertLess(infos[1].block_bytes, infos[0].block_bytes)
        self.assertGreater(infos[1].block_bytes, infos[0].block_bytes * 8 // 10)
        self.assertEqual(len(answers[0].results), 10)
        self.assertEqual(answers[0].results, answers[1].results)

    def test_errors_have_reasons(self) -> None:
        with self.assertRaises(grpc.RpcError) as caught:
            self.administering.GetCollection(self.admin.GetCollectionRequest(name="absent"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        self.assertEqual(reason_of(caught.exception), "COLLECTION_NOT_FOUND")

    def test_deadline(self) -> None:
        with self.assertRaises(grpc.RpcError) as caught:
            self.searching.GetInfo(self.search.GetInfoRequest(), timeout=-1)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_reflection(self) -> None:
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = database.get_services()
        for name in ("SearchService", "AdminService"):
            self.assertIn(f"turboquant.v1.{name}", services)
            described = descriptor_pool.DescriptorPool(database).FindServiceByName(
                f"turboquant.v1.{name}"
            )
            module = self.search if name == "SearchService" else self.admin
            expected = module.DESCRIPTOR.services_by_name[name]
            self.assertEqual(
                sorted(m.name for m in described.methods), sorted(m.name for m in expected.methods)
            )

    def test_health(self) -> None:
        stub = health_pb2_grpc.HealthStub(self.channel)
        for name in ("", "turboquant.v1.SearchService", "turboquant.v1.SearchService/writes"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    PythonStubsTest.proto_folder = sys.argv.pop(2)
    PythonStubsTest.program = sys.argv.pop(1)
    unittest.main(verbosity=2)
