"""RaBitQ-Library's IVF index; one cluster makes it a scan of everything."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import rabitqlib

from ..partition import Products
from .base import Wrapper, index_file, saved_size

NO_ID = np.iinfo(np.uint32).max  # fewer than k answers


class Index(Wrapper):
    """params: bits (1 to 9), clusters, nprobe; centroids, a file of them in place of its own."""

    version = f"rabitqlib {version('rabitqlib')}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        self.clusters = params.get("clusters", 1)
        self.nprobe = params.get("nprobe", self.clusters)

    def train(self, base: np.ndarray) -> None:
        if self.clusters == 1:
            self.centroids = base.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
            self.assignments = np.zeros(len(base), dtype=np.uint32)
            return
        if centroids := self.params.get("centroids"):
            self.centroids = np.load(centroids)
            self.assignments = Products(base).nearest(self.centroids).astype(np.uint32)
            return
        means = rabitqlib.RaBitQKMeans(self.d, self.clusters, num_threads=self.threads)
        means.train(base)
        self.centroids, self.assignments = means.centroids, means.assignments

    def add(self, base: np.ndarray) -> None:
        self.index = rabitqlib.IvfIndex(self.d, len(base), self.clusters, self.params["bits"], "ip")
        self.index.build(base, self.centroids, self.assignments, num_threads=self.threads)

    def configure(self, nprobe: int) -> None:
        self.nprobe = nprobe

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = self.index.search(queries, k, self.nprobe, num_threads=self.threads)
        return scores, np.where(ids == NO_ID, -1, ids.astype(np.int64))

    def save(self, folder: str) -> None:
        self.index.save(index_file(folder))

    def load(self, folder: str) -> None:
        self.index = rabitqlib.IvfIndex.load(index_file(folder))

    def size_bytes(self) -> int:
        return saved_size(self.index.save)
