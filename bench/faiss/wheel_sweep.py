#!/usr/bin/env python3
"""The tables of faiss_bench for indexes of a faiss-cpu wheel, whose kernels use what the processor
has (Debian's libfaiss does not).

  bench/faiss/wheel_sweep.py --base base.npy --queries queries.npy --nprobe 8 32 \\
      IVF1024,PQ192x4fs IVF1024,RaBitQfs
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("factory", nargs="+")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--nprobe", type=int, nargs="*", default=[])
    parser.add_argument("--ef", type=int, nargs="*", default=[])
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--singles", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    faiss.omp_set_num_threads(options.threads)
    base = np.load(options.base).astype(np.float32)
    queries = np.load(options.queries)[:960].astype(np.float32)
    exact = faiss.IndexFlatIP(base.shape[1])
    exact.add(base)
    cutoffs = exact.search(queries, RECALL_AT)[0][:, -1]
    print(f"{len(base)} rows x {base.shape[1]}, {len(queries)} queries, inner product, "
          f"k = {options.k}, {options.threads} threads, faiss-cpu {faiss.__version__}\n")
    print("| index | bytes/vector | 10-recall@10 | train s, one thread | add s "
          "| batch s, min / median | one query ms, min / median |\n|---|---|---|---|---|---|---|")
    for name in options.factory:
        index = faiss.index_factory(base.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(1)
        train = seconds(lambda: index.train(base))
        faiss.omp_set_num_threads(options.threads)
        add = seconds(lambda: index.add(base))
        size = len(faiss.serialize_index(index)) / len(base)
        lists = "IVF" in name
        values = options.nprobe if lists else options.ef if "HNSW" in name else []
        for value in values or [None]:
            text = ""
            if value is not None:
                text = f"{'nprobe' if lists else 'efSearch'}={value}"
                faiss.ParameterSpace().set_index_parameters(index, text)
            ids = index.search(queries, options.k)[1]
            batch, single = [], []
            for _ in range(options.repetitions):
                batch.append(seconds(lambda: index.search(queries, options.k)))
                single.append(seconds(lambda: [index.search(queries[q : q + 1], options.k)
                                               for q in range(options.singles)]) / options.singles)
            print(f"| {name} {text} | {size:.1f} | {recall(base, queries, cutoffs, ids):.4f} "
                  f"| {train:.2f} | {add:.3f} | {min(batch):.4f} / {statistics.median(batch):.4f} "
                  f"| {1e3 * min(single):.3f} / {1e3 * statistics.median(single):.3f} |")


if __name__ == "__main__":
    main()
