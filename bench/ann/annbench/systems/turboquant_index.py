"""This project's index, through its Python package."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import turboquant

from .base import Wrapper


class Index(Wrapper):
    """params: bits, estimator ("tq", "t", "qjl", "qjlg", "mse"), centre, prune_confidence."""

    version = f"turboquant {version('turboquant')}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        turboquant.set_num_threads(threads)
        confidence = params.pop("prune_confidence", 0.0)
        self.index = turboquant.IndexTurboQuant(d, metric="ip", **params)
        self.index.prune_confidence = confidence

    def add(self, base: np.ndarray) -> None:
        self.index.add(base)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries, k)

    def size_bytes(self) -> int:
        return len(self.index.to_bytes()) + self.index.sign_bytes
