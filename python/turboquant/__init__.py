"""TurboQuant: vectors in 1 to 4 bits a coordinate, searched without decompressing them.

    import turboquant
    index = turboquant.IndexTurboQuant(384, bits=3, metric="ip")
    index.add(vectors)                        # (n, 384), no training
    scores, ids = index.search(queries, 10)   # (nq, 10) each
    turboquant.write_index(index, "words.tqi")

turboquant.faiss makes FAISS's own Python module know TurboQuant; turboquant.cuda has the index on a
CUDA device; turboquant.kvcache compresses keys and values of transformers;
turboquant.integrations holds vector stores for LangChain and LlamaIndex. docs/python.md is the guide.
"""

from __future__ import annotations

import os
from typing import Any

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
from ._reference import (
    MSEQuantizedOutput,
    TurboQuant,
    TurboQuantIndex,
    TurboQuantMSE,
    TurboQuantOutput,
)
from .kvcache import AdaptiveKVCache, TurboQuantKVCache, gradient_allocation

__version__ = "0.1.0"


def read_index(path: str | os.PathLike[str], *, mmap: bool = False, check: bool = False) -> Index:
    """Reads an index file of this package, of C++, of the command line or of FAISS with the plugin.

    mmap: leave the codes of a flat index, or the inverted lists of an IVF one, in the file; opening
    then takes no time and the index is read-only. Other trees are read into memory all the same.
    check: with mmap, read a flat file once to verify its codes; without mmap that is always done.
    The file must not change while a mapped index is open.
    """
    return _read_index(path, mmap, check)


def __getattr__(name: str) -> Any:
    """What needs CUDA, torch or transformers is imported when it is asked for."""
    if name == "GpuIndexTurboQuant":
        from .cuda import GpuIndexTurboQuant

        return GpuIndexTurboQuant
    if name in ("TurboQuantDynamicCache", "wrap"):
        from . import kvcache

        return getattr(kvcache, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _index_from_bytes(data: bytes) -> Index:  # for pickles, which name functions of Python
    return Index.from_bytes(data)


__all__ = [
    "AdaptiveKVCache",
    "DEFAULT_SEED",
    "GpuIndexTurboQuant",
    "IDSelector",
    "Index",
    "IndexTurboQuant",
    "MSEQuantizedOutput",
    "Quantizer",
    "TurboQuant",
    "TurboQuantDynamicCache",
    "TurboQuantIndex",
    "TurboQuantKVCache",
    "TurboQuantMSE",
    "TurboQuantOutput",
    "get_num_threads",
    "gradient_allocation",
    "index_factory",
    "read_index",
    "set_num_threads",
    "wrap",
    "write_index",
]
