"""hnswlib: a graph over float32 vectors."""

from __future__ import annotations

from importlib.metadata import version

import hnswlib
import numpy as np

from .base import Wrapper, index_file, saved_size


class Index(Wrapper):
    """params: M, ef_construction, ef."""

    version = f"hnswlib {version('hnswlib')}"

    def add(self, base: np.ndarray) -> None:
        self.index = hnswlib.Index("ip", self.d)
        self.index.init_index(
            len(base), M=self.params["M"], ef_construction=self.params["ef_construction"]
        )
        self.index.set_num_threads(self.threads)
        self.index.add_items(base)
        self.index.set_ef(self.params["ef"])

    def configure(self, ef: int) -> None:
        self.index.set_ef(ef)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids, distances = self.index.knn_query(queries, k)
        return 1 - distances, ids.astype(np.int64)

    def save(self, folder: str) -> None:
        self.index.save_index(index_file(folder))

    def load(self, folder: str) -> None:
        self.index = hnswlib.Index("ip", self.d)
        self.index.load_index(index_file(folder))
        self.index.set_num_threads(self.threads)
        self.index.set_ef(self.params["ef"])

    def size_bytes(self) -> int:
        return saved_size(self.index.save_index)
