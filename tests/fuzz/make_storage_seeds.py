#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz/corpus/storage: make_storage_seeds.py FOLDER."""
import os
import struct
import sys

ROWS = 4096
IDS = struct.pack("<BQ", 0, 1) * ROWS


def checksum(data: bytes) -> int:
    """That of docs/index_format.md."""

    def mixed(h: int, word: int) -> int:
        h ^= word
        return (h << 29 | h >> 35) % 2**64 * 0x9E3779B97F4A7C15 % 2**64

    words = struct.unpack(f"<{(len(data) + 7) // 8}Q", data + bytes(-len(data) % 8))
    lanes = [1, 2, 3, 4]
    for i, word in enumerate(words):
        lanes[i % 4] = mixed(lanes[i % 4], word)
    h = len(data)
    for lane in lanes:
        h = mixed(h, lane)
    return h


def packed_block() -> bytes:
    """Rows of dimension 10, 1 bit and a float, all zero, in streams that are stored as they are."""
    code_size = 6
    streams = (struct.pack("<I", ROWS) + bytes(ROWS)) * code_size
    group = struct.pack("<Q", checksum(bytes(ROWS * code_size))) + streams
    packed = struct.pack("<I", len(group)) + group
    return struct.pack("<III", ROWS, code_size, len(packed)) + packed + IDS


SEEDS = {
    "collection": b"\0" + struct.pack("<IIIBBQQI", 1, 7, 384, 2, 1, 5, 6, 0)
    + struct.pack("<H", 3) + b"TQ3" + struct.pack("<H", 1) + struct.pack("<H", 1) + b"a\x03",
    "collection_packed": b"\0" + struct.pack("<IIIBBQQI", 2, 7, 384, 1, 0, 5, 6, 0)
    + struct.pack("<H", 3) + b"TQ4" + struct.pack("<H", 0),
    "metadata": b"\1" + struct.pack("<H", 5) + b"\1\0a\0\1" + b"\1\0b\1" + struct.pack("<q", -3)
    + b"\1\0c\2" + struct.pack("<d", 0.5) + b"\1\0d\3" + struct.pack("<I", 2) + b"xy"
    + b"\1\0e\4" + struct.pack("<HI", 1, 1) + b"z",
    "indexed": b"\2" + struct.pack("<HHBB", 2, 0, 0, 1) + struct.pack("<HBq", 1, 1, 9),
    "row_number": b"\3" + struct.pack("<BQ", 0, 9) + bytes(12),
    "row_text": b"\3" + struct.pack("<BH", 1, 2) + b"id" + bytes(12),
    "block": b"\4" + struct.pack("<II", ROWS, 0) + IDS,
    "block_packed": b"\4" + packed_block(),
    "operation": b"\5" + struct.pack("<QBQQQQ", 1, 2, 3, 4, 5, 6),
    "id_number": b"\6\0" + struct.pack(">Q", 258),
    "id_text": b"\6\1text",
    "halves": b"\7" + struct.pack("<4e", 1, -0.5, 0, 65504),
    "log": b"\x08" + struct.pack("<IHB", 1, 5, 1) + b"abc",
    "filter_tree": b"\x09" + bytes([0, 3, 2, 6, 3, 1, 2, 3, 1, 4, 5, 1, 3, 251, 9]) + bytes(range(90)),
    "filter_in": b"\x09" + bytes([4, 3, 5, 1, 65, 0, 2, 65, 66, 1, 66, 0, 39]) + bytes(range(1, 120)),
}


def main() -> None:
    for name, data in SEEDS.items():
        with open(os.path.join(sys.argv[1], name), "wb") as file:
            file.write(data)


if __name__ == "__main__":
    main()
