"""What the runner asks of a system."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np


class Wrapper(ABC):
    """One index over vectors of `d` float32 coordinates, searched by inner product.

    The time of train() and add() is measured, and so is that of search(): a wrapper does nothing in
    them that the library would not need. Ids are positions in the array that was added.
    """

    version = "unknown"

    def __init__(self, d: int, threads: int, **params: Any) -> None:
        self.d = d
        self.threads = threads
        self.params = params

    def prepare(self, base: np.ndarray) -> None:
        """What the interface asks for but the library's work is not: its time is not counted."""

    def train(self, base: np.ndarray) -> None:
        """Learns from the vectors that will be added; most of ours have nothing to learn."""

    def configure(self, **settings: Any) -> None:
        """Sets what later searches go by; nothing for an index without such settings."""
        if settings:
            raise NotImplementedError(f"{type(self).__module__} has no settings")

    @abstractmethod
    def add(self, base: np.ndarray) -> None: ...

    @abstractmethod
    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, ids), both len(queries) x k, best first."""

    def save(self, folder: str) -> None:
        """Writes the index into an empty folder, for load()."""
        raise NotImplementedError(f"{type(self).__module__} cannot be stored")

    def load(self, folder: str) -> None:
        """In place of prepare(), train() and add(): what save() wrote, by the same parameters."""
        raise NotImplementedError(f"{type(self).__module__} cannot be stored")

    def size_bytes(self) -> int | None:
        """Bytes of the serialized index, all that a search needs; None if it cannot be had."""
        return None


def index_file(folder: str) -> str:
    return os.path.join(folder, "index")


def saved_size(save: Any) -> int:
    """Bytes of what save(path) writes: a file or a folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = index_file(folder)
        save(path)
        root = Path(path)
        files = [root] if root.is_file() else [p for p in root.rglob("*") if p.is_file()]
        return sum(file.stat().st_size for file in files)
