#!/usr/bin/env python3
"""One query at a time: pruned scans beside whole ones, over usual rows and over hard ones.

  bench/ann/pruned.py --rows 1000000 --sets wordnet clusters
  bench/ann/pruned.py --rows 250000 --sets identical nearly half tenth most

Searches take turns, query by query. Rows are made and added in blocks, so that no more than the
codes stays in memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import turboquant
from annbench import datasets, metrics
from annbench.tables import markdown_table

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 32768
STRETCH = 512  # a pruned scan samples one in 32 of so many rows

HEADER = ["rows", "whole, ms", "pruned, ms", "times as fast", "kept of the whole scan's"]
HEADER += ["recall, whole", "recall, pruned"]

Blocks = Callable[[int, int], np.ndarray]  # (first row, number of rows) to rows


def unit(x: np.ndarray) -> np.ndarray:
    return datasets.normalized(x).astype(np.float32)


def noise(d: int, n: int, seed: list[int]) -> np.ndarray:
    """Rows of about unit length."""
    x = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return x / np.float32(d**0.5)


def wordnet(d: int, rows: int, queries: int) -> tuple[Blocks, np.ndarray]:
    folder = ROOT.parent / "shared/data/wordnet-minilm"
    if not folder.exists():
        folder = ROOT / "examples/data"
    base, asked = np.load(folder / "base.npy"), np.load(folder / "queries.npy")
    parts = max(1, d // base.shape[1])
    if parts * base.shape[1] != d:
        raise SystemExit(f"wordnet: {d} is no multiple of {base.shape[1]}")
    q = datasets.passages(asked, parts, len(asked), 1)[:queries]
    return lambda first, n: datasets.passages(base, parts, n, 1, first), q


def clusters(d: int, rows: int, queries: int) -> tuple[Blocks, np.ndarray]:
    centres = noise(d, 2000, [1])

    def draw(first: int, n: int) -> np.ndarray:
        of = np.random.default_rng([2, first]).integers(len(centres), size=n)
        return unit(centres[of] + noise(d, n, [3, first]))

    return draw, draw(rows, queries)


def around(spread: float, near: Callable[[np.ndarray, int], np.ndarray]) -> Callable:
    """Rows for which near(ids, rows) holds lie `spread` from one centre, where the queries are."""

    def make(d: int, rows: int, queries: int) -> tuple[Blocks, np.ndarray]:
        centre = unit(noise(d, 1, [1]))

        def draw(first: int, n: int) -> np.ndarray:
            x = noise(d, n, [2, first])
            close = near(np.arange(first, first + n), rows)
            x[close] = centre + spread * x[close]
            return unit(x)

        return draw, unit(centre + 0.1 * noise(d, queries, [4]))

    return make


def everywhere(ids: np.ndarray, _: int) -> np.ndarray:
    return np.ones(len(ids), dtype=bool)


SETS: dict[str, tuple[str, Callable]] = {
    "wordnet": ("WordNet, passages of one topic side by side", wordnet),
    "clusters": ("2,000 clusters", clusters),
    "identical": ("all rows identical", around(0, everywhere)),
    "nearly": ("all rows within .001", around(0.001, everywhere)),
    "close": ("all rows within .1", around(0.1, everywhere)),
    "half": (
        "half of the rows within .3 of the queries' centre",
        around(0.3, lambda ids, _: ids * 2654435761 % 2**32 < 2**31),
    ),
    "tenth": (
        "one row after another in the first tenth",
        around(0.3, lambda ids, rows: ids < rows // 10),
    ),
    "percent": (
        "one row after another in the first hundredth",
        around(0.3, lambda ids, rows: ids < rows // 100),
    ),
    "most": (
        "all but every 32nd stretch of 512 rows",
        around(0.3, lambda ids, _: ids // STRETCH % 32 != 16),
    ),
    "few": (
        "every 32nd stretch of 512 rows",
        around(0.3, lambda ids, _: ids // STRETCH % 32 == 16),
    ),
}


class Measured:
    """One set of rows in an index, with the answers of both ways to search it."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.title, make = SETS[name]
        self.args = args
        self.blocks, self.queries = make(args.dimension, args.rows, args.queries)
        self.index = turboquant.IndexTurboQuant(args.dimension, bits=args.bits, metric="ip")
        best = np.full((len(self.queries), args.k), -np.inf)
        for first in range(0, args.rows, BLOCK):
            rows = self.blocks(first, min(BLOCK, args.rows - first))
            self.index.add(rows)
            if args.exact:
                found = metrics.exact_search(rows, self.queries, args.k)[0]
                best = np.sort(np.concatenate([best, found], axis=1), axis=1)[:, : -args.k - 1 : -1]
        self.best = best
        self.times: dict[float, list[float]] = {0.0: [], args.confidence: []}
        self.answers: dict[float, list] = {}
        for confidence in self.times:  # a first call makes the signs
            self.index.prune_confidence = confidence
            self.answers[confidence] = [self.search(query) for query in self.queries]

    def search(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(query[None], self.args.k)

    def take_times(self) -> None:
        begin = time.perf_counter()
        for turn in range(self.args.turns * len(self.queries)):
            if time.perf_counter() - begin > self.args.budget:
                return
            query = self.queries[turn % len(self.queries)]
            for confidence, taken in self.times.items():
                self.index.prune_confidence = confidence
                start = time.perf_counter()
                self.search(query)
                taken.append(time.perf_counter() - start)

    def line(self) -> list[str]:
        whole, pruned = (statistics.median(taken) * 1e3 for taken in self.times.values())
        kept = [
            np.mean(pruned_scores[0] >= scores[0, -1])
            for (scores, _), (pruned_scores, _) in zip(*self.answers.values(), strict=True)
        ]
        figures = [f"{whole:.3f}", f"{pruned:.3f}", f"{whole / pruned:.2f}", f"{np.mean(kept):.4f}"]
        recall = [f"{self.recall(c):.4f}" if self.args.exact else "" for c in self.times]
        return [self.title, *figures, *recall]

    def recall(self, confidence: float) -> float:
        """Share of answers whose exact product reaches the k-th; their rows are made again."""
        ids = np.concatenate([ids for _, ids in self.answers[confidence]])
        hits = 0
        for first in range(0, self.args.rows, BLOCK):
            n = min(BLOCK, self.args.rows - first)
            inside = (ids >= first) & (ids < first + n)
            if not inside.any():
                continue
            at = np.where(inside, ids - first, -1)
            products = metrics.exact_products(self.blocks(first, n), self.queries, at)
            hits += int(np.sum(products >= self.best[:, -1:] - 1e-12))
        return hits / ids.size


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rows", type=int, default=1000000)
    parser.add_argument("--dimension", type=int, default=1536)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--confidence", type=float, default=0.999)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of searches a set")
    parser.add_argument("--exact", action="store_true", help="recall against exact search as well")
    args = parser.parse_args()
    turboquant.set_num_threads(args.threads)
    return args


def main() -> int:
    args = arguments()
    lines = []
    for name in args.sets:
        measured = Measured(name, args)
        measured.take_times()
        lines.append(measured.line())
        print(lines[-1], file=sys.stderr, flush=True)
    print(markdown_table(HEADER, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
