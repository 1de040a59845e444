"""FAISS's own indexes, by factory string."""

from __future__ import annotations

import faiss
import numpy as np

from .base import Wrapper, index_file


class Index(Wrapper):
    """params: factory; parameters (of faiss.ParameterSpace, "nprobe=8"); train_threads; centroids,
    a file of them that an inverted file takes in place of its own k-means."""

    version = f"faiss-cpu {faiss.__version__}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        faiss.omp_set_num_threads(threads)
        self.index = faiss.index_factory(d, params["factory"], faiss.METRIC_INNER_PRODUCT)

    def train(self, base: np.ndarray) -> None:
        faiss.omp_set_num_threads(self.params.get("train_threads", self.threads))
        if centroids := self.params.get("centroids"):
            faiss.extract_index_ivf(self.index).quantizer.add(np.load(centroids))
        self.index.train(base)
        faiss.omp_set_num_threads(self.threads)

    def add(self, base: np.ndarray) -> None:
        self.index.add(base)
        self.set_parameters()

    def set_parameters(self) -> None:
        if parameters := self.params.get("parameters"):
            faiss.ParameterSpace().set_index_parameters(self.index, parameters)

    def configure(self, **settings) -> None:
        for name, value in settings.items():
            faiss.ParameterSpace().set_index_parameter(self.index, name, value)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries, k)

    def save(self, folder: str) -> None:
        faiss.write_index(self.index, index_file(folder))

    def load(self, folder: str) -> None:
        self.index = faiss.read_index(index_file(folder))
        self.set_parameters()

    def size_bytes(self) -> int:
        return faiss.serialize_index(self.index).nbytes
