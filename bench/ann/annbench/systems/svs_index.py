"""Scalable Vector Search: LVQ codes or plain numbers, scanned (Flat) or under a Vamana graph."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version

import numpy as np
import svs

from .base import Wrapper, saved_size

PARTS = ("config", "graph", "data")


class Index(Wrapper):
    """params: kind ("flat" or "vamana"); either primary and residual bits of LVQ or dtype
    ("float32", "float16", "int8"); degree, window. int8 takes queries of 8 bits as well."""

    version = f"scalable-vs {version('scalable-vs')}"

    def __init__(self, d: int, threads: int, **params) -> None:
        super().__init__(d, threads, **params)
        self.dtype = params.get("dtype")

    def numbers(self, x: np.ndarray) -> np.ndarray:
        if self.dtype != "int8":
            return x.astype(self.dtype)
        return np.clip(np.rint(x * self.scale), -127, 127).astype(np.int8)

    def prepare(self, base: np.ndarray) -> None:
        if self.dtype is not None:
            self.scale = 127 / float(np.abs(base).max())
            self.source = self.numbers(base)
            return
        # LVQ loads from a file only.
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "base.fvecs")
        svs.write_vecs(base, path)
        file = svs.VectorDataLoader(path, svs.DataType.float32, self.d)
        self.source = svs.LVQLoader(file, self.params["primary"], self.params.get("residual", 0))

    def add(self, base: np.ndarray) -> None:
        if self.params["kind"] == "flat":
            self.index = svs.Flat(self.source, svs.DistanceType.MIP, num_threads=self.threads)
            return
        build = svs.VamanaBuildParameters(
            graph_max_degree=self.params.get("degree", 32), alpha=0.95
        )
        self.index = svs.Vamana.build(
            build, self.source, svs.DistanceType.MIP, num_threads=self.threads
        )
        self.source = None  # the index has its own copy
        self.index.num_threads = self.threads
        self.index.search_window_size = self.params["window"]

    def configure(self, window: int) -> None:
        self.index.search_window_size = window

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked = self.numbers(queries) if self.dtype == "int8" else queries
        ids, scores = self.index.search(asked, k)
        return scores, ids

    def save(self, folder: str) -> None:
        self.index.save(*(os.path.join(folder, name) for name in PARTS))
        if self.dtype == "int8":
            np.save(os.path.join(folder, "scale.npy"), self.scale)

    def load(self, folder: str) -> None:
        config, graph, data = (os.path.join(folder, name) for name in PARTS)
        if self.dtype is None:
            loader = svs.LVQLoader(data)
        else:
            loader = svs.VectorDataLoader(data, getattr(svs.DataType, self.dtype), self.d)
        asked = svs.DataType.float32
        if self.dtype == "int8":
            self.scale = float(np.load(os.path.join(folder, "scale.npy")))
            asked = svs.DataType.int8
        self.index = svs.Vamana(
            config,
            svs.GraphLoader(graph),
            loader,
            svs.DistanceType.MIP,
            query_type=asked,
            num_threads=self.threads,
        )
        self.index.search_window_size = self.params["window"]

    def size_bytes(self) -> int | None:
        if self.params["kind"] == "flat":
            return None  # Flat has no save()

        def save(folder: str) -> None:
            os.mkdir(folder)
            self.save(folder)

        return saved_size(save)
