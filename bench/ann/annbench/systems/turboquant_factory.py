"""This project's indexes by factory string, through its Python package."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import turboquant

from .base import Wrapper, index_file


class Index(Wrapper):
    """params: factory; the others are search parameters ("nprobe", "efSearch", "k_factor_rf")."""

    version = f"turboquant {version('turboquant')}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        turboquant.set_num_threads(threads)
        self.index = turboquant.index_factory(d, self.params.pop("factory"), "ip")
        self.configure(**self.params)

    def configure(self, **settings) -> None:
        for name, value in settings.items():
            self.index.set_parameter(name, value)

    def train(self, base: np.ndarray) -> None:
        if not self.index.is_trained:
            self.index.train(base)

    def add(self, base: np.ndarray) -> None:
        self.index.add(base)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries, k)

    def save(self, folder: str) -> None:
        turboquant.write_index(self.index, index_file(folder))

    def load(self, folder: str) -> None:
        self.index = turboquant.read_index(index_file(folder))
        self.configure(**self.params)

    def size_bytes(self) -> int:
        return len(self.index.to_bytes())
