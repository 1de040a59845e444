"""The results of runs: what the JSON files of run.py say, summed up and judged."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUIET = 0.2  # times are not given where other processes used more of the machine
EQUAL_RECALL = 0.003  # recalls that differ by less count as equal
TOLERANCES = {"recall_10": 0.005, "slope": 0.003, "var_d": 0.05}  # the last relative
RECALL_AT = ("1", "10", "100")


@dataclass
class Row:
    """One system of one run, its repetitions summed up."""

    data: dict[str, Any]
    vectors: int

    @property
    def name(self) -> str:
        return self.data["name"]

    @property
    def failed(self) -> bool:
        return bool(self.data["error"])

    @property
    def build_s(self) -> float:
        return min(t + a for t, a in zip(self.data["train_s"], self.data["add_s"]))

    def figure(self, name: str) -> float | None:
        """By the names that [expected] of the configuration uses."""
        return self.recall("10") if name == "recall_10" else self.data["estimates"].get(name)

    def unexpected(self) -> list[str]:
        """What lies outside of the tolerance around the expected figures."""
        found = []
        for name, tolerance in TOLERANCES.items():
            if (expected := self.data["expected"].get(name)) is None:
                continue
            measured = self.figure(name)
            within = self.data["expected"].get(f"{name}_within", tolerance)
            within *= expected if name == "var_d" else 1
            if measured is None or abs(measured - expected) > within + 1e-9:
                found.append(f"{self.name}: {name} is {measured}, expected {expected}")
        return found

    def recall(self, at: str) -> float | None:
        return self.data["recall"].get(at)

    def least(self, key: str) -> float:
        return min(self.data[key])

    def median(self, key: str) -> float:
        return statistics.median(self.data[key])

    def per_vector(self, key: str) -> float | None:
        size = self.data[key]
        return None if size is None else size / self.vectors


@dataclass
class Table:
    """One run over one data set."""

    document: dict[str, Any]

    def __post_init__(self) -> None:
        vectors = self.document["dataset"]["rows"]
        self.rows = [Row(data, vectors) for data in self.document["systems"]]
        name = self.document["run"]["reference"]
        found = [row for row in self.rows if row.name == name and not row.failed]
        self.reference = found[0] if found else None

    def counterpart(self, peer: Row) -> Row:
        """Ours to compare a peer with: the first of the same bits, or else the reference."""
        ours = [self.reference] + [r for r in self.rows if r.data["ours"] and not r.failed]
        same = [r for r in ours if r.data["bits"] == peer.data["bits"]]
        return same[0] if same else self.reference

    @property
    def quiet(self) -> bool:
        return self.document["other_load"] <= QUIET

    def unexpected(self) -> list[str]:
        return [text for row in self.rows if not row.failed for text in row.unexpected()]

    def findings(self) -> list[str]:
        """Where a peer is ahead of us, and by what."""
        title = self.document["run"]["title"]
        if self.reference is None:
            return [f"{title}: not judged, {self.document['run']['reference']} has no result"]
        found = []
        for peer in self.rows:
            if not peer.failed and not peer.data["ours"]:
                found += ahead(peer, self.counterpart(peer), self.quiet)
        return found


def ahead(peer: Row, ours: Row, times: bool) -> list[str]:
    found = []
    sizes = f"{number(peer.per_vector('bytes'))} against {number(ours.per_vector('bytes'))}"
    if peer.data["bits"] == ours.data["bits"]:
        for at in RECALL_AT:
            mine, its = ours.recall(at), peer.recall(at)
            if mine is not None and its is not None and its > mine + EQUAL_RECALL:
                found.append(
                    f"{peer.name}: recall@{at} {share(its)} against {share(mine)} of {ours.name}, "
                    f"{sizes} bytes a vector"
                )
    at = "10" if ours.recall("10") is not None else "1"
    if not times or peer.recall(at) < ours.recall(at) - EQUAL_RECALL:
        return found
    for key, unit, label in (("batch_s", 1, "batch"), ("one_s", 1e3, "one query")):
        mine, its = ours.least(key), peer.least(key)
        if its < mine:
            found.append(
                f"{peer.name}: {label} {mine / its:.2f} times as fast as {ours.name} "
                f"({its * unit:.3g} against {mine * unit:.3g} {'s' if unit == 1 else 'ms'}, "
                f"recall@{at} {share(peer.recall(at))} against {share(ours.recall(at))}, "
                f"{sizes} bytes a vector)"
            )
    return found


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".removeprefix("0")


def number(value: float | None, digits: int = 0) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}"


def seconds(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def read_tables(
    inputs: list[Path], expected: dict[str, dict[str, dict[str, float]]]
) -> dict[str, list[Table]]:
    """Tables by data set, in the order of the runs in the configuration."""
    files = [f for p in inputs for f in (sorted(p.glob("*.json")) if p.is_dir() else [p])]
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    documents.sort(key=lambda document: document["run"]["order"])
    tables: dict[str, list[Table]] = {}
    for document in documents:
        figures = expected.get(document["dataset"]["name"], {})
        for data in document["systems"]:
            data["expected"] = figures.get(data["name"], {})
        tables.setdefault(document["dataset"]["name"], []).append(Table(document))
    return tables
