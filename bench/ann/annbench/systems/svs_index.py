"""Scalable Vector Search: LVQ codes, scanned (Flat) or under a Vamana graph."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version

import numpy as np
import svs

from .base import Wrapper, saved_size


class Index(Wrapper):
    """params: kind ("flat" or "vamana"), primary and residual bits of LVQ, degree, window."""

    version = f"scalable-vs {version('scalable-vs')}"

    def prepare(self, base: np.ndarray) -> None:
        # LVQ loads from a file only.
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "base.fvecs")
        svs.write_vecs(base, path)
        self.source = svs.VectorDataLoader(path, svs.DataType.float32, self.d)

    def add(self, base: np.ndarray) -> None:
        loader = svs.LVQLoader(self.source, self.params["primary"], self.params.get("residual", 0))
        if self.params["kind"] == "flat":
            self.index = svs.Flat(loader, svs.DistanceType.MIP, num_threads=self.threads)
            return
        build = svs.VamanaBuildParameters(
            graph_max_degree=self.params.get("degree", 32), alpha=0.95
        )
        self.index = svs.Vamana.build(build, loader, svs.DistanceType.MIP, num_threads=self.threads)
        self.index.num_threads = self.threads
        self.index.search_window_size = self.params["window"]

    def configure(self, window: int) -> None:
        self.index.search_window_size = window

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = self.index.search(queries, k)
        return scores, ids

    def size_bytes(self) -> int | None:
        if self.params["kind"] == "flat":
            return None  # Flat has no save()

        def save(folder: str) -> None:
            os.mkdir(folder)
            self.index.save(*(os.path.join(folder, name) for name in ("config", "graph", "data")))

        return saved_size(save)
