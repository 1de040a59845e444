"""USearch: its graph, or its exact scan, over float32, half or 8-bit vectors."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from usearch.index import Index as Graph

from .base import Wrapper, index_file


class Index(Wrapper):
    """params: dtype ("f32", "f16", "bf16", "i8"), exact, connectivity, expansion_search."""

    version = f"usearch {version('usearch')}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        self.index = Graph(
            ndim=self.d,
            metric="ip",
            dtype=self.params["dtype"],
            connectivity=self.params.get("connectivity", 16),
            expansion_search=self.params.get("expansion_search", 64),
        )

    def add(self, base: np.ndarray) -> None:
        self.index.add(np.arange(len(base), dtype=np.uint64), base, threads=self.threads)

    def configure(self, expansion_search: int) -> None:
        self.index.expansion_search = expansion_search

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        matches = self.index.search(
            queries, k, threads=self.threads, exact=self.params.get("exact", False)
        )
        shape = (len(queries), -1)
        return 1 - matches.distances.reshape(shape), matches.keys.reshape(shape).astype(np.int64)

    def save(self, folder: str) -> None:
        self.index.save(index_file(folder))

    def load(self, folder: str) -> None:
        self.index.load(index_file(folder))

    def size_bytes(self) -> int:
        return self.index.serialized_length
