"""Builds each index once and searches it with all of its settings: see curves.toml."""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from . import config, datasets, metrics, plots
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


class Curves:
    """Measures one index after the other over one data set."""

    def __init__(self, settings: config.Settings, base: np.ndarray, queries: np.ndarray, log: Any):
        self.settings, self.base, self.queries, self.log = settings, base, queries, log

    def say(self, text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def prepare(self, folder: Path, cache: Path, name: str) -> None:
        self.folder = folder
        np.save(folder / "base.npy", self.base)
        np.save(folder / "queries.npy", self.queries)
        path = cache / f"{name}-{len(self.base)}-exact.npy"
        if not path.exists():
            self.say("exact search")
            np.save(path, metrics.exact_search(self.base, self.queries, self.settings.k)[0])
        self.truth = np.load(path)

    def measure(self, system: config.System, settings: list[dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {"name": system.name, "ours": system.ours, "points": []}
        self.say(system.name)
        peer = Peer(system, sys.executable, self.settings.threads, self.log, self.settings.timeout_s)
        try:
            result |= peer.ask(
                "load",
                base=str(self.folder / "base.npy"),
                queries=str(self.folder / "queries.npy"),
                threads=self.settings.threads,
                params=system.params,
            )
            result |= peer.ask("build") | peer.ask("size")
            for setting in settings:
                result["points"].append(self.point(peer, setting))
        except SystemFailed as error:
            result["error"] = str(error)
            self.say(f"{system.name} failed: {error}")
        finally:
            peer.close()
        return result

    def point(self, peer: Peer, setting: dict[str, Any]) -> dict[str, Any]:
        peer.ask("configure", settings=setting)
        path = self.folder / "answer.npy"
        k = self.settings.k
        times = [peer.ask("answer", k=k, path=str(path))["batch_s"]]
        while len(times) < self.settings.repetitions and sum(times) < self.settings.budget_s:
            times.append(peer.ask("batch", k=k)["batch_s"])
        recall = metrics.recall(self.base, self.queries, self.truth, np.load(path), k)
        point = {"setting": setting, "recall": recall, "qps": len(self.queries) / min(times)}
        self.say(f"  {setting}: recall@{k} {recall:.4f}, {point['qps']:.0f} queries/s")
        return point


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
    parser.add_argument("--rows", type=int, help="use the first rows only")
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
        settings = config.Settings(**data["settings"] | ({"threads": args.threads} if args.threads else {}))
        entry = data["datasets"][args.dataset]
        if entry.get("synthetic") and args.rows:
            entry["rows"] = args.rows
        base, queries = datasets.load(entry, ROOT, args.rows)
        d = base.shape[1]
        chosen = []
        for curve in data["curves"]:
            search = settings_of(curve.pop("search"))
            (system,) = config.expand(curve, d)
            if any(fnmatch.fnmatchcase(system.name, pattern) for pattern in args.systems):
                chosen.append((system, search))
    except (KeyError, config.ConfigError, datasets.DatasetError, OSError) as error:
        print(f"curves.py: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.dataset}-{len(base)}.json"
    with tempfile.TemporaryDirectory() as folder, open(path.with_suffix(".log"), "w") as log:
        curves = Curves(settings, base, queries, log)
        curves.prepare(Path(folder), args.out, args.dataset)
        for system, search in chosen:
            document = {
                "title": entry["title"],
                "rows": len(base),
                "dimension": d,
                "queries": len(queries),
                "k": settings.k,
                "threads": settings.threads,
                "processor": processor(),
                "results": [curves.measure(system, search)],
            }
            old = json.loads(path.read_text()) if path.exists() else None
            document = merge(old, document)
            path.write_text(json.dumps(document, indent=1) + "\n")
            path.with_suffix(".md").write_text(text(document))
    plots.curves(document, path.with_suffix(""))
    print(path.with_suffix(".md"))
    return 0
