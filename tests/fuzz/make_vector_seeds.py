#!/usr/bin/env python3
"""Writes the seed corpora of the vector file readers: corpus/{npy,fvecs,fbin}/NAME."""
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def write(folder, name, data):
    path = os.path.join(HERE, "corpus", folder)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, name), "wb") as file:
        file.write(data)


def npy(descr, shape, payload, version=1, fortran="False"):
    text = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }\n" % (descr, fortran, shape)
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + payload


def main():
    floats = struct.pack("<6f", 1, -2, 0.5, 4, float("nan"), 6)
    for descr, size in (("<f2", 2), ("<f4", 4), ("<f8", 8), ("|i1", 1), ("|u1", 1), ("<i4", 4),
                        ("<u4", 4), ("<i8", 8), ("<u8", 8)):
        write("npy", descr[1:], npy(descr, "(2, 3)", bytes(range(6 * size))))
    write("npy", "version2", npy("<f4", "(2, 3)", floats, 2))
    write("npy", "version3", npy("<f4", "(6,)", floats, 3))
    write("npy", "empty", npy("<f4", "(0, 7)", b""))
    write("npy", "fortran", npy("<f4", "(2, 3)", floats, 1, "True"))
    write("npy", "big_endian", npy(">f4", "(2, 3)", floats))
    write("npy", "overflow", npy("<f4", "(4611686018427387904, 1)", floats))
    write("npy", "truncated", npy("<f4", "(2, 3)", floats[:-1]))

    row = struct.pack("<i2f", 2, 1, 2)
    write("fvecs", "three_rows", row * 3)
    write("fvecs", "other_dimension", row + struct.pack("<i2f", 3, 1, 2))
    write("fvecs", "truncated", row + row[:-1])
    write("fvecs", "negative", struct.pack("<if", -1, 0))
    write("fvecs", "empty", b"")

    write("fbin", "two_rows", struct.pack("<2I", 2, 3) + floats)
    write("fbin", "no_rows", struct.pack("<2I", 0, 3))
    write("fbin", "truncated", struct.pack("<2I", 2, 3) + floats[:-1])
    write("fbin", "overflow", struct.pack("<2I", 0x80000000, 0x80000000) + floats)


if __name__ == "__main__":
    main()
