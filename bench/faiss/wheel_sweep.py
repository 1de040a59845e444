#!/usr/bin/env python3
"""The tables of faiss_bench for indexes of a faiss-cpu wheel, whose kernels use what the processor
has (Debian's libfaiss does not).

  bench/faiss/wheel_sweep.py --base base.npy --queries queries.npy --nprobe 8 32 \\
      IVF1024,PQ192x4fs IVF1024,RaBitQfs
  bench/faiss/wheel_sweep.py --turboquant --base base.npy --queries queries.npy --ef 32 128 \\
      HNSW32,SQ8 HNSW32,TQ4

All indexes are built first, then searched in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Callable

import faiss
import numpy as np

RECALL_AT = 10
HEADER = (
    "| index | bytes/vector | 10-recall@10 | train s, one thread | add s "
    "| batch s, min / median | one query ms, min / median |\n|---|---|---|---|---|---|---|"
)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def recall(base: np.ndarray, queries: np.ndarray, cutoffs: np.ndarray, ids: np.ndarray) -> float:
    """The share of the first answers whose exact product is that of the true ones."""
    found = 0
    for query, cutoff, row in zip(queries, cutoffs, ids[:, :RECALL_AT], strict=True):
        scores = base[row[row >= 0]] @ query
        found += int(np.count_nonzero(scores >= cutoff - 1e-5 * abs(cutoff)))
    return found / (len(queries) * RECALL_AT)


class Swept:
    """An index with its settings, and the times of each."""

    def __init__(self, name: str, base: np.ndarray, options: argparse.Namespace) -> None:
        self.name = name
        self.index = faiss.index_factory(base.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(1)
        self.train = seconds(lambda: self.index.train(base))
        faiss.omp_set_num_threads(options.threads)
        self.add = seconds(lambda: self.index.add(base))
        if "Refine" in name or "RFlat" in name:
            faiss.ParameterSpace().set_index_parameter(self.index, "k_factor_rf", options.k_factor)
        values = options.nprobe if "IVF" in name else options.ef if "HNSW" in name else []
        self.knob = "nprobe" if "IVF" in name else "efSearch"
        self.ids: dict[int | None, np.ndarray] = {}
        self.batch: dict[int | None, list[float]] = {value: [] for value in values or [None]}
        self.single: dict[int | None, list[float]] = {value: [] for value in self.batch}

    def take_turn(self, queries: np.ndarray, options: argparse.Namespace) -> None:
        k, first = options.k, queries[: options.singles]
        for value in self.batch:
            if value is not None:
                faiss.ParameterSpace().set_index_parameter(self.index, self.knob, value)
            if value not in self.ids:
                self.ids[value] = self.index.search(queries, k)[1]
            self.batch[value].append(seconds(lambda: self.index.search(queries, k)))
            single = seconds(lambda: [self.index.search(query[None], k) for query in first])
            self.single[value].append(single / len(first))

    def lines(self, base: np.ndarray, queries: np.ndarray, cutoffs: np.ndarray) -> list[str]:
        size = len(faiss.serialize_index(self.index)) / len(base)
        out = []
        for value, batch in self.batch.items():
            setting = "" if value is None else f" {self.knob}={value}"
            single = [1e3 * s for s in self.single[value]]
            found = recall(base, queries, cutoffs, self.ids[value])
            out.append(
                f"| {self.name}{setting} | {size:.1f} | {found:.4f} | {self.train:.2f} "
                f"| {self.add:.3f} | {min(batch):.4f} / {statistics.median(batch):.4f} "
                f"| {min(single):.3f} / {statistics.median(single):.3f} |"
            )
        return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("factory", nargs="+")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--rows", type=int, help="use the first rows only")
    parser.add_argument("--nprobe", type=int, nargs="*", default=[])
    parser.add_argument("--ef", type=int, nargs="*", default=[])
    parser.add_argument("--k-factor", type=float, default=4, help="of indexes that refine")
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--singles", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--turboquant", action="store_true", help="teach this FAISS turboquant's strings"
    )
    options = parser.parse_args()
    if options.turboquant:
        import turboquant.faiss

        turboquant.faiss.install()
    faiss.omp_set_num_threads(options.threads)
    return options


def vectors(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(base, queries, the product that the last of the true nearest has)."""
    base = np.load(options.base)[: options.rows].astype(np.float32)
    queries = np.load(options.queries)[:960].astype(np.float32)
    exact = faiss.IndexFlatIP(base.shape[1])
    exact.add(base)
    return base, queries, exact.search(queries, RECALL_AT)[0][:, -1]


def main() -> None:
    options = arguments()
    base, queries, cutoffs = vectors(options)
    print(
        f"{len(base)} rows x {base.shape[1]}, {len(queries)} queries, inner product, "
        f"k = {options.k}, {options.threads} threads, faiss-cpu {faiss.__version__}\n"
    )
    swept = [Swept(name, base, options) for name in options.factory]
    for _ in range(options.repetitions):
        for index in swept:
            index.take_turn(queries, options)
    print(HEADER)
    for index in swept:
        print("\n".join(index.lines(base, queries, cutoffs)))


if __name__ == "__main__":
    main()
