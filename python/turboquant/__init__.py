"""TurboQuant: vectors in 1 to 4 bits a coordinate, searched without decompressing them.

    import numpy, turboquant
    index = turboquant.IndexTurboQuant(384, bits=3, metric="ip")
    index.add(vectors)                        # (n, 384), no training
    scores, ids = index.search(queries, 10)   # (nq, 10) each
    turboquant.write_index(index, "words.tqi")
"""

from __future__ import annotations

from ._core import (
    DEFAULT_SEED,
    IDSelector,
    Index,
    IndexTurboQuant,
    Quantizer,
    _read_index,
    get_num_threads,
    index_factory,
    set_num_threads,
    write_index,
)

__version__ = "0.1.0"


def read_index(path) -> Index:
    """Reads an index file of this package, of C++, of the command line or of FAISS's plugin."""
    return _read_index(path)


def _index_from_bytes(data: bytes) -> Index:  # for pickles, which name functions of Python
    return Index.from_bytes(data)


__all__ = [
    "DEFAULT_SEED",
    "IDSelector",
    "Index",
    "IndexTurboQuant",
    "Quantizer",
    "get_num_threads",
    "index_factory",
    "read_index",
    "set_num_threads",
    "write_index",
]
