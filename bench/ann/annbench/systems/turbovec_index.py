"""turbovec. Environment variables choose its exact scan or its two-stage one: see ann.toml."""

from __future__ import annotations

import numpy as np
import turbovec

from .base import Wrapper


class Index(Wrapper):
    """params: bits; calibrate (rows of a random sample to calibrate with)."""

    version = f"turbovec {turbovec.__version__}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        self.index = turbovec.TurboQuantIndex(d, params["bits"])

    def train(self, base: np.ndarray) -> None:
        if rows := self.params.get("calibrate"):
            sample = np.random.default_rng(1).choice(len(base), min(rows, len(base)), replace=False)
            self.index.calibrate(np.ascontiguousarray(base[sample]))

    def add(self, base: np.ndarray) -> None:
        self.index.add(base)
        self.index.prepare()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries, k)

    def size_bytes(self) -> int:
        return len(self.index.to_bytes())
