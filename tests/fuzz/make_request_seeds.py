#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz/corpus/request and .../text_files.

Usage: make_request_seeds.py CORPUS_FOLDER, with modules that protoc made of proto/ on PYTHONPATH.
"""

import os
import struct
import sys

from turboquant.v1 import admin_service_pb2 as admin
from turboquant.v1 import search_service_pb2 as search
from turboquant.v1 import types_pb2 as types


def requests() -> dict[str, tuple[int, object]]:
    """Name: position of the method in the server's table, message."""
    one = types.Vectors(values=[1, 0, 2, 0])
    condition = types.Filter(
        any_of=types.Filters(
            filters=[
                types.Filter(
                    equal=types.FieldEqual(field="s", value=types.Value(string_value="x"))
                ),
                types.Filter(negate=types.Filter(exists=types.FieldExists(field="n"))),
                types.Filter(
                    range=types.FieldRange(
                        field="n", gte=types.Value(int_value=0), lt=types.Value(int_value=9)
                    )
                ),
                types.Filter(one_of=types.FieldOneOf(field="n", values=[types.Value(int_value=1)])),
            ]
        )
    )
    batch = search.RecordBatch(
        ids=[types.RecordId(number=7), types.RecordId(name="b")],
        vectors=types.Vectors(
            data=struct.pack("<8e", *range(1, 9)), encoding=types.VECTOR_ENCODING_F16LE
        ),
        metadata=[
            types.Metadata(
                fields={"n": types.Value(int_value=3), "d": types.Value(double_value=0.5)}
            ),
            types.Metadata(
                fields={"l": types.Value(list_value=types.StringList(values=["p", "q"]))}
            ),
        ],
    )
    write = search.WriteOptions(durability=types.DURABILITY_MEMORY, operation_id="op")
    options = admin.CollectionOptions(
        dimension=4,
        metric=admin.METRIC_L2,
        factory="TQ2",
        fields=[admin.FieldSchema(name="n", type=types.FIELD_TYPE_INT64)],
    )
    packed = admin.CollectionOptions(dimension=4, metric=admin.METRIC_L2, pack_codes=True)
    parts = types.Parts(metadata=True, vector=True)
    ids = [types.RecordId(number=1), types.RecordId(name="a")]
    return {
        "search": (0, search.SearchRequest(collection="w", queries=one, k=3, parts=parts)),
        "search_filter": (
            0,
            search.SearchRequest(
                collection="w", queries=one, k=2, filter=condition, rescore=True, oversampling=2
            ),
        ),
        "search_exact": (
            0,
            search.SearchRequest(collection="w", queries=batch.vectors, k=2, exact=True),
        ),
        "range": (
            1,
            search.RangeSearchRequest(collection="w", queries=one, radius=0.1, filter=condition),
        ),
        "get": (2, search.GetRequest(collection="w", ids=ids, parts=parts)),
        "scroll": (3, search.ScrollRequest(collection="w", limit=2, filter=condition, parts=parts)),
        "count": (4, search.CountRequest(collection="w", filter=condition)),
        "upsert": (5, search.UpsertRequest(collection="w", batch=batch, options=write)),
        "insert": (6, search.InsertRequest(collection="w", batch=batch)),
        "delete": (7, search.DeleteRequest(collection="w", ids=ids, options=write)),
        "delete_filter": (7, search.DeleteRequest(collection="w", filter=condition)),
        "bulk": (
            8,
            search.BulkAddRequest(
                collection="w", batch=batch, mode=search.BULK_MODE_INSERT, sequence=4
            ),
        ),
        "info": (9, search.GetInfoRequest()),
        "create": (10, admin.CreateCollectionRequest(name="new", options=options)),
        "create_packed": (10, admin.CreateCollectionRequest(name="new", options=packed)),
        "drop": (11, admin.DropCollectionRequest(name="new")),
        "collection": (12, admin.GetCollectionRequest(name="w")),
        "compact": (14, admin.CompactCollectionRequest(name="w")),
        "alias": (15, admin.SetAliasRequest(alias="a", collection="w")),
        "unalias": (16, admin.DropAliasRequest(alias="a")),
    }


def text_files() -> dict[str, bytes]:
    """What text_files_fuzz.cpp reads; the first byte picks the reader."""
    npy = (
        b"\x93NUMPY\x01\x00\x46\x00"
        + b"{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }".ljust(69)
        + b"\n"
    )
    rows = b'{"id": 3, "n": 4, "d": 1, "l": ["a", "b"], "x": null}\n{"id": "r", "d": 0.5}\n'
    return {
        "ids_text": b"\x00" + b"1\n-2\n30\r\n",
        "ids_npy": b"\x01" + npy + struct.pack("<2q", 5, -6),
        "ids_ibin": b"\x02" + struct.pack("<IIii", 2, 1, 4, 9),
        "lines": b"\x03" + b"one\ntwo\r\n\nlast",
        "rows": b"\x04" + rows,
        "rows_id_field": b"\x04" + rows + b"\n" * (len(rows) % 2),
        "filter": b"\x05"
        + b'{"all_of": [{"equal": {"lang": "en"}}, {"not": {"exists": "y"}}, {"range": {"y": {"gte": 1}}},'
        + b' {"any_of": [{"one_of": {"y": [1, 2.5, true]}}]}]}',
        "tokens": b"\x06"
        + b"# c\napp write "
        + b"5e" * 32
        + b" a,b 200\nops admin "
        + b"A0" * 32
        + b" *\n",
    }


def write(folder: str, name: str, data: bytes) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def main() -> None:
    corpus = sys.argv[1]
    for name, (method, message) in requests().items():
        data = bytes([method]) + message.SerializeToString(deterministic=True)
        write(os.path.join(corpus, "request"), name, data)
    for name, data in text_files().items():
        write(os.path.join(corpus, "text_files"), name, data)


if __name__ == "__main__":
    main()
