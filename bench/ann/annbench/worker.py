"""One system in a process of its own: obeys commands on stdin, one JSON object a line.

Started by runner.py as: python -m annbench.worker WRAPPER. Replies go to the original stdout, one
JSON object a line, and anything that a library prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def anonymous_bytes() -> int:
    """Memory that belongs to this process alone; mapped files (the vectors) are not in it."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def trimmed_bytes() -> int:
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library: freed memory may still count
        ctypes.CDLL(None).malloc_trim(0)
    return anonymous_bytes()


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros behind each row, for systems that want d to be a multiple; products stay the same."""
    missing = -x.shape[1] % multiple
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, missing)))) if missing else x


class Worker:
    def __init__(self, wrapper: str) -> None:
        self.index_class = importlib.import_module(f".systems.{wrapper}", __package__).Index
        self.index: Any = None

    def load(self, base: str, queries: str, threads: int, params: dict[str, Any]) -> dict[str, Any]:
        multiple = params.pop("pad", 1)
        self.base = padded(np.asarray(np.load(base, mmap_mode="r")), multiple)
        self.queries = padded(np.load(queries), multiple)
        self.threads, self.params = threads, params
        float(self.base.sum())  # pages of the file are in memory from now on
        return {"version": self.index_class.version}

    def build(self, store: str | None = None) -> dict[str, float]:
        """With a folder, takes the index from there, or builds it and leaves it there."""
        self.index = None
        before = trimmed_bytes()
        index = self.index_class(self.base.shape[1], self.threads, **self.params)
        times = Path(store, "times.json") if store else None
        if times and times.exists():
            index.load(store)
            index.search(self.queries[:1], 1)
            self.index = index
            built = json.loads(times.read_text())
            return {**built, "grown_bytes": trimmed_bytes() - before}
        index.prepare(self.base)
        processor = time.process_time()
        train = seconds(lambda: index.train(self.base))
        add = seconds(lambda: index.add(self.base))
        processor = time.process_time() - processor
        index.search(self.queries[:1], 1)  # what a first search builds counts as memory
        self.index = index
        built = {"train_s": train, "add_s": add, "processor_s": processor}
        grown = trimmed_bytes() - before
        if times:
            shutil.rmtree(store, ignore_errors=True)
            os.makedirs(store)
            index.save(store)
            times.write_text(json.dumps(built))
        return {**built, "grown_bytes": grown}

    def configure(self, settings: dict[str, Any]) -> dict[str, Any]:
        self.index.configure(**settings)
        return {}

    def size(self) -> dict[str, int | None]:
        return {"bytes": self.index.size_bytes()}

    def answer(self, k: int, path: str) -> dict[str, float]:
        """Saves the answers to all queries; the first call warms up."""
        start = time.perf_counter()
        scores, ids = self.index.search(self.queries, k)
        elapsed = time.perf_counter() - start
        if scores.shape != (len(self.queries), k) or ids.shape != scores.shape:
            raise RuntimeError(f"asked for {len(self.queries)} x {k}, got {ids.shape}")
        np.save(path, ids)
        return {"batch_s": elapsed}

    def batch(self, k: int) -> dict[str, float]:
        return {"batch_s": seconds(lambda: self.index.search(self.queries, k))}

    def one(self, k: int, n: int, budget_s: float) -> dict[str, Any]:
        """The median time of a query that comes alone, over up to n queries."""
        self.index.search(self.queries[:1], k)
        times: list[float] = []
        while len(times) < n and sum(times) < budget_s:
            at = len(times) % len(self.queries)
            query = self.queries[at : at + 1]
            times.append(seconds(lambda query=query: self.index.search(query, k)))
        return {"one_s": statistics.median(times)}

    def estimates(self, n: int, path: str) -> dict[str, Any]:
        """Saves the score of every row for the first n queries."""
        scores, ids = self.index.search(self.queries[:n], len(self.base))
        matrix = np.full((len(scores), len(self.base)), np.nan, dtype=np.float32)
        np.put_along_axis(matrix, ids.astype(np.int64), scores.astype(np.float32), axis=1)
        if np.isnan(matrix).any():
            raise RuntimeError("a search for all rows left some of them out")
        np.save(path, matrix)
        return {}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        command = json.loads(line)
        operation = command.pop("do")
        try:
            if worker is None:
                worker = Worker(sys.argv[1])
            reply = getattr(worker, operation)(**command)
        except BaseException as error:  # the runner lists it, whatever it is
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".strip()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
