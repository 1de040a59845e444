"""Builds each index once and searches it with all of its settings: see curves.toml."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import math
import re
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from . import config, datasets, metrics, partition, plots
from .machine import processor
from .runner import Peer, SystemFailed
from .tables import markdown_table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
GOALS = (0.9, 0.95, 0.99)


def settings_of(search: Any) -> list[dict[str, Any]]:
    """[{}], or one dictionary for each value of the one parameter that is swept."""
    if isinstance(search, list):
        return search
    ((name, values),) = search.items()
    return [{name: value} for value in values]


def rate_at(points: list[dict[str, Any]], goal: float) -> float | None:
    """Queries a second at a recall, on the curve between the best points; None if not reached."""
    curve = sorted((p["recall"], p["qps"]) for p in points)
    best: list[tuple[float, float]] = []  # a point that another beats in both is not on the curve
    for recall, qps in reversed(curve):
        if not best or qps > best[-1][1]:
            best.append((recall, qps))
    best.reverse()
    above = [p for p in best if p[0] >= goal]
    if not above:
        return None
    below = [p for p in best if p[0] < goal]
    if not below:
        return above[0][1]
    (r0, q0), (r1, q1) = below[-1], above[0]
    share = (goal - r0) / (r1 - r0)
    return math.exp(math.log(q0) + share * (math.log(q1) - math.log(q0)))


Chosen = list[tuple[config.System, list[dict[str, Any]]]]


class Curves:
    """Measures indexes over one data set."""

    def __init__(self, settings: config.Settings, base: np.ndarray, queries: np.ndarray, log: Any):
        self.settings, self.base, self.queries, self.log = settings, base, queries, log
        self.interpreters = {"default": sys.executable}

    def say(self, text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def prepare(self, folder: Path, cache: Path, name: str) -> None:
        self.folder, self.kept = folder, cache / f"{name}-{len(self.base)}"
        np.save(folder / "base.npy", self.base)
        np.save(folder / "queries.npy", self.queries)
        path = cache / f"{name}-{len(self.base)}-{len(self.queries)}-exact.npy"
        if not path.exists():
            self.say("exact search")
            np.save(path, metrics.exact_search(self.base, self.queries, self.settings.k)[0])
        self.truth = np.load(path)

    def centroids(self, lists: int) -> str:
        """A file of what all systems with so many lists share."""
        path = self.kept.with_name(f"{self.kept.name}-{lists}-centroids.npy")
        if not path.exists():
            self.say(f"{lists} centroids")
            np.save(path, partition.spherical_means(self.base, lists))
        return str(path.resolve())

    def start(self, system: config.System, store: Path | None) -> tuple[Peer, dict[str, Any]]:
        """A process with the index, built or read from its folder in the store."""
        self.say(system.name)
        python = self.interpreters.get(system.python)
        if python is None:
            raise SystemFailed(f"no interpreter is named for '{system.python}'")
        params = dict(system.params)
        if "centroids" in params:
            params["centroids"] = self.centroids(params["centroids"])
        peer = Peer(system, python, self.settings.threads, self.log, self.settings.timeout_s)
        try:
            result = peer.ask(
                "load",
                base=str(self.folder / "base.npy"),
                queries=str(self.folder / "queries.npy"),
                threads=self.settings.threads,
                params=params,
            )
            folder = str(store / re.sub(r"\W+", "_", system.name)) if store else None
            result |= peer.ask("build", store=folder) | peer.ask("size")
        except SystemFailed:
            peer.close()
            raise
        return peer, result

    def measure(self, chosen: Chosen, store: Path | None, repetitions: int) -> list[dict[str, Any]]:
        """Starts all of `chosen`, then searches with each setting of each, turn by turn."""
        results, running = [], []
        for system, settings in chosen:
            result: dict[str, Any] = {"name": system.name, "ours": system.ours, "points": []}
            results.append(result)
            try:
                peer, started = self.start(system, store)
            except SystemFailed as error:
                result["error"] = str(error)
                self.say(f"{system.name} failed: {error}")
                continue
            result |= started
            result["points"] = [{"setting": setting, "times": []} for setting in settings]
            running.append((peer, result))
        for turn in range(repetitions):
            with self.undisturbed():
                for peer, result in running:
                    self.turn(peer, result, first=turn == 0)
        for peer, _ in running:
            peer.close()
        for result in results if repetitions else []:
            self.judge(result)
        return results

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """Around a turn: where others are kept off the machine, if they can be."""
        return contextlib.nullcontext()

    def turn(self, peer: Peer, result: dict[str, Any], first: bool) -> None:
        k = self.settings.k
        try:
            for i, point in enumerate(result["points"]):
                peer.ask("configure", settings=point["setting"])
                if first:
                    point["answer"] = str(self.folder / f"answer-{id(result)}-{i}.npy")
                    point["times"].append(peer.ask("answer", k=k, path=point["answer"])["batch_s"])
                elif sum(point["times"]) < self.settings.budget_s:
                    point["times"].append(peer.ask("batch", k=k)["batch_s"])
        except SystemFailed as error:
            result["error"] = str(error)
            self.say(f"{result['name']} failed: {error}")

    def judge(self, result: dict[str, Any]) -> None:
        k = self.settings.k
        if "error" in result:
            result["points"] = []
        for point in result["points"]:
            found = np.load(point.pop("answer"))
            point["recall"] = metrics.recall(self.base, self.queries, self.truth, found, k)
            point["qps"] = len(self.queries) / min(point["times"])
            self.say(
                f"{result['name']} {point['setting']}: recall@{k} {point['recall']:.4f}, "
                f"{point['qps']:.0f} queries/s"
            )


def table(document: dict[str, Any]) -> str:
    header = ["index", "train + add, s", "bytes/vector", "memory/vector"]
    header += [f"queries/s at {goal:.0%}" for goal in GOALS] + ["best recall"]
    rows = []
    for result in document["results"]:
        if "error" in result:
            rows.append([result["name"], f"failed: {result['error'][:120]}", *[""] * 6])
            continue
        per_vector = [
            "unknown" if result[key] is None else f"{result[key] / document['rows']:,.0f}"
            for key in ("bytes", "grown_bytes")
        ]
        rates = [rate_at(result["points"], goal) for goal in GOALS]
        rows.append(
            [
                result["name"],
                f"{result['train_s'] + result['add_s']:,.1f}",
                *per_vector,
                *("" if rate is None else f"{rate:,.0f}" for rate in rates),
                f"{max(p['recall'] for p in result['points']):.4f}".removeprefix("0"),
            ]
        )
    return markdown_table(header, rows)


def text(document: dict[str, Any]) -> str:
    return (
        f"{document['title']}: {document['rows']:,} × {document['dimension']}, "
        f"{document['queries']:,} queries, k = {document['k']}, {document['threads']} threads.\n"
        f"Processor: {document['processor']}.\n\n{table(document)}\n"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="an entry of [datasets] in curves.toml")
    parser.add_argument("--config", type=Path, default=HERE.parent / "curves.toml")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "curves")
    parser.add_argument("--systems", nargs="+", default=["*"], help="patterns of names")
    parser.add_argument("--store", type=Path, help="where built indexes are kept, for later runs")
    parser.add_argument("--build-only", action="store_true", help="fill --store, search nothing")
    parser.add_argument(
        "--together", action="store_true", help="hold all indexes in memory and search in turns"
    )
    parser.add_argument("--rows", type=int, help="use the first rows only")
    parser.add_argument(
        "--queries", type=int, help="of a batch: the first; where rows are mixed, more as well"
    )
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Results of an earlier run stay where this one has none of the same name."""
    if old is None or any(old[key] != new[key] for key in new if key not in ("results", "command")):
        return new
    fresh = {result["name"]: result for result in new["results"]}
    kept = [fresh.pop(result["name"], result) for result in old["results"]]
    return {**new, "results": kept + list(fresh.values())}


def main() -> int:
    args = arguments()
    try:
        with open(args.config, "rb") as file:
            data = tomllib.load(file)
        own = {"threads": args.threads} if args.threads else {}
        settings = config.Settings(**data["settings"] | own)
        entry = data["datasets"][args.dataset]
        if entry.get("synthetic") and args.rows:
            entry["rows"] = args.rows
        base, queries = datasets.load(entry, ROOT, args.rows, args.queries)
        d = base.shape[1]
        chosen = []
        for curve in data["curves"]:
            search = settings_of(curve.pop("search"))
            for system in config.expand(curve, d):
                if any(fnmatch.fnmatchcase(system.name, pattern) for pattern in args.systems):
                    chosen.append((system, search))
    except (KeyError, config.ConfigError, datasets.DatasetError, OSError) as error:
        print(f"curves.py: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.dataset}-{len(base)}.json"
    with tempfile.TemporaryDirectory() as folder, open(path.with_suffix(".log"), "w") as log:
        curves = Curves(settings, base, queries, log)
        curves.interpreters |= data.get("interpreters", {})
        curves.prepare(Path(folder), args.out, args.dataset)
        repetitions = 0 if args.build_only else settings.repetitions
        for group in [chosen] if args.together else [[entry] for entry in chosen]:
            results = curves.measure(group, args.store, repetitions)
            if args.build_only:
                continue
            document = {
                "title": entry["title"],
                "rows": len(base),
                "dimension": d,
                "queries": len(queries),
                "k": settings.k,
                "threads": settings.threads,
                "processor": processor(),
                "results": results,
            }
            old = json.loads(path.read_text()) if path.exists() else None
            document = merge(old, document)
            path.write_text(json.dumps(document, indent=1) + "\n")
            path.with_suffix(".md").write_text(text(document))
    if not args.build_only:
        plots.curves(document, path.with_suffix(""))
        print(path.with_suffix(".md"))
    return 0
