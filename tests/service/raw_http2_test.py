#!/usr/bin/env python3
"""Sends turboquant-server bytes that no gRPC client sends; it must stay up and keep its data.

Usage: raw_http2_test.py SERVER_PROGRAM. Needs nothing but the standard library.
"""

import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
# Seconds for what has to come: a machine may stand still for a minute.
PATIENCE = 600.0
GET_INFO = "/turboquant.v1.SearchService/GetInfo"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


START = PREFACE + frame(SETTINGS, 0, 0, b"")


def hpack_int(value: int, prefix: int) -> bytes:
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes([value])
    out = [limit]
    value -= limit
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes(out + [value])


def literal(name: str, value: str) -> bytes:
    """A header without indexing and without Huffman coding."""
    parts = [b"\x00"]
    for text in (name, value):
        parts += [hpack_int(len(text), 7), text.encode("latin-1")]
    return b"".join(parts)


def request_headers(path: str, extra: list[tuple[str, str]]) -> bytes:
    usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
    ]
    return b"".join(literal(name, value) for name, value in usual + extra)


def header_frames(block: bytes, stream: int = 1) -> bytes:
    """A header block, cut into frames of at most 16,000 bytes."""
    pieces = [block[i : i + 16000] for i in range(0, len(block), 16000)]
    frames = []
    for i, piece in enumerate(pieces):
        kind = HEADERS if i == 0 else CONTINUATION
        frames.append(frame(kind, END_HEADERS if i + 1 == len(pieces) else 0, stream, piece))
    return b"".join(frames)


def call_get_info(extra: list[tuple[str, str]]) -> bytes:
    body = frame(DATA, END_STREAM, 1, b"\x00\x00\x00\x00\x00")
    block = request_headers(GET_INFO, extra)
    return START + header_frames(block) + body


class RawHttp2Test(unittest.TestCase):
    program = ""

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.log = open(os.path.join(cls.folder.name, "log"), "w+", encoding="utf-8")
        data = os.path.join(cls.folder.name, "data")
        command = [cls.program, "--data-dir", data, "--listen", "127.0.0.1:0"]
        cls.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=cls.log, text=True)
        line = cls.server.stdout.readline()
        found = re.search(r"port (\d+)", line)
        assert found, line
        cls.port = int(found.group(1))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.send_signal(signal.SIGTERM)
        status = cls.server.wait(timeout=PATIENCE)
        cls.server.stdout.close()
        cls.log.close()
        cls.folder.cleanup()
        assert status == 0, f"the server ended with {status}"

    def exchange(self, data: bytes, seconds: float = 1.0) -> bytes:
        """Sends, and returns what comes back in the time."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            try:
                if data.startswith(START):
                    # The server's limits hold once its settings are acknowledged.
                    connection.sendall(START)
                    connection.recv(65536)
                    connection.sendall(frame(SETTINGS, ACK, 0, b""))
                    data = data[len(START) :]
                connection.sendall(data)
                connection.settimeout(seconds)
                while chunk := connection.recv(65536):
                    received += chunk
                    if b"grpc-status" in received:
                        break
            except OSError:
                pass
        return received

    def assert_serves(self) -> None:
        self.assertIsNone(self.server.poll(), "the server died")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if b"0.1" in self.exchange(call_get_info([("te", "trailers")]), PATIENCE):
                return
        self.fail("the server does not answer GetInfo")

    def test_a_plain_call_is_answered(self) -> None:
        self.assertIn(b"grpc-status", self.exchange(call_get_info([("te", "trailers")]), PATIENCE))

    def test_headers_beyond_the_limit_are_refused(self) -> None:
        """Else the next test would not reach what it is about."""
        headers = [("te", "trailers"), ("x-padding", "a" * 9_000)]
        self.assertIn(b"metadata size exceeds limit", self.exchange(call_get_info(headers), PATIENCE))

    def test_cve_2023_1428(self) -> None:
        """Odd values of te, :scheme and internal names, followed by more headers than 8 KiB."""
        for name, value in (
            ("te", "x"),
            (":scheme", "x"),
            ("grpclb_client_stats", "x"),
            ("lb-cost-bin", "x"),
            ("grpc-timeout", "x"),
        ):
            for size in (9_000, 20_000, 200_000):
                with self.subTest(name=name, size=size):
                    self.exchange(call_get_info([(name, value), ("x-padding", "a" * size)]))
                    many = [(f"x-padding-{i}", "a" * 500) for i in range(size // 500)]
                    self.exchange(call_get_info([(name, value), *many]))
                    self.assert_serves()

    def test_garbage(self) -> None:
        random.seed(1)
        noise = [bytes(random.randrange(256) for _ in range(n)) for n in (1, 9, 100, 5000)]
        start = START
        good = request_headers(GET_INFO, [("te", "trailers")])
        inputs = [
            b"",
            *noise,
            *[PREFACE + n for n in noise],
            *[start + n for n in noise],
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise[2],  # a TLS greeting
            start + frame(HEADERS, END_HEADERS, 1, noise[2]),
            start + frame(HEADERS, END_HEADERS, 0, good),
            start + frame(HEADERS, END_HEADERS, 2, good),
            start + frame(DATA, END_STREAM, 7, b"hello"),
            start + frame(CONTINUATION, END_HEADERS, 1, good),
            start + frame(HEADERS, 0, 1, good) + frame(PING, 0, 0, b"12345678"),
            start + frame(SETTINGS, 0, 0, b"\x00\x05\xff\xff\xff\xff"),
            start + frame(RST_STREAM, 0, 1, b"\x00"),
            start + b"\xff\xff\xff\x00\x00\x00\x00\x00\x00",
            start + header_frames(good) + frame(DATA, END_STREAM, 1, b"\x00\xff\xff\xff\xff"),
            start + header_frames(good) + frame(DATA, END_STREAM, 1, b"\x01\x00\x00\x00\x05abcde"),
            start + header_frames(good) + frame(DATA, END_STREAM, 1, b"\x00\x00\x00\x00\x05abcde"),
            start + header_frames(good) + frame(DATA, END_STREAM, 1, b""),
            start + frame(PING, 0, 0, b"12345678") * 2000,
            start + b"".join(header_frames(good, 2 * i + 1) for i in range(3000)),
        ]
        for i, data in enumerate(inputs):
            with self.subTest(i=i):
                self.exchange(data, 0.2)
                self.assertIsNone(self.server.poll(), f"input {i} killed the server")
        self.assert_serves()

    def test_a_malformed_request_is_refused(self) -> None:
        body = frame(DATA, END_STREAM, 1, b"\x00\x00\x00\x00\x02\x0a\xff")
        block = request_headers("/turboquant.v1.SearchService/Search", [("te", "trailers")])
        answer = self.exchange(START + header_frames(block) + body, PATIENCE)
        self.assertIn(b"grpc-status", answer)
        self.assertIn(b"not a message of its type", answer)

    def test_rapid_resets_are_survived(self) -> None:
        block = request_headers(GET_INFO, [("te", "trailers")])
        calls = b"".join(
            header_frames(block, 2 * i + 1) + frame(RST_STREAM, 0, 2 * i + 1, b"\x00\x00\x00\x08")
            for i in range(5000)
        )
        self.exchange(START + calls, 1.0)
        self.assert_serves()


if __name__ == "__main__":
    RawHttp2Test.program = sys.argv.pop(1)
    unittest.main(verbosity=2)
