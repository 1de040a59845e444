"""turboquant-torch, the PyTorch reference of the paper's Algorithm 2."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
import turboquant

from .base import Wrapper, saved_size


class Index(Wrapper):
    """params: bits."""

    version = f"turboquant-torch {version('turboquant-torch')}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        torch.set_num_threads(threads)
        self.index = turboquant.TurboQuantIndex(d, params["bits"], metric="ip")

    def add(self, base: np.ndarray) -> None:
        with torch.no_grad():
            self.index.add(torch.from_numpy(base))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            scores, ids = self.index.search(torch.from_numpy(queries), k)
        return scores.numpy(), ids.numpy()

    def size_bytes(self) -> int:
        # It cannot save itself; these are the tensors that it keeps.
        return saved_size(lambda path: torch.save(self.index._db, path))
