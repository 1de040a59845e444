"""Turns the JSON files of run.py into CSV, Markdown and plots, and updates documents.

  bench/ann/report.py build/bench/ann --out build/bench/ann
  bench/ann/report.py build/bench/ann --update docs/benchmarks.md README.md

In a document, what stands between `<!-- results: NAME -->` and `<!-- end of results -->` is
replaced, where NAME is ann/DATASET (all tables) or ann-summary/DATASET (one short table).
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config

CONFIG = Path(__file__).resolve().parent.parent / "ann.toml"
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
    if peer.data["bits"] == ours.data["bits"]:
        for at in RECALL_AT:
            mine, its = ours.recall(at), peer.recall(at)
            if mine is not None and its is not None and its > mine + EQUAL_RECALL:
                found.append(
                    f"{peer.name}: recall@{at} {share(its)} against {share(mine)} of {ours.name}"
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
                f"{number(peer.per_vector('bytes'))} against "
                f"{number(ours.per_vector('bytes'))} bytes a vector)"
            )
    return found


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".removeprefix("0")


def number(value: float | None, digits: int = 0) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}"


def seconds(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def error_text(row: Row) -> str:
    text = re.sub(r"\s+", " ", row.data["error"]).replace("|", "/")
    return f"failed: {text[:160]}"


def identity(row: Row) -> list[str]:
    return [
        row.name,
        number(row.per_vector("bytes")),
        number(row.per_vector("grown_bytes")),
        *(share(row.recall(at)) for at in RECALL_AT),
    ]


def main_table(table: Table) -> str:
    reference = table.reference
    name = reference.name if reference else table.document["run"]["reference"]
    header = [
        "system",
        "bytes/vector",
        "memory/vector",
        "recall@1",
        "@10",
        "@100",
        "train + add, s",
        "batch, s (median)",
        "one query, ms (median)",
        f"batch / {name}",
        f"one / {name}",
    ]
    lines = []
    for row in table.rows:
        if row.failed:
            lines.append([row.name, error_text(row)] + [""] * (len(header) - 2))
            continue
        if not table.quiet:
            lines.append([*identity(row), "", "", "", "", ""])
            continue
        ratios = ["", ""]
        if reference:
            ratios = [f"{row.least(k) / reference.least(k):.2f}" for k in ("batch_s", "one_s")]
        lines.append(
            [
                *identity(row),
                seconds(row.build_s),
                f"{seconds(row.least('batch_s'))} ({seconds(row.median('batch_s'))})",
                f"{1e3 * row.least('one_s'):.3f} ({1e3 * row.median('one_s'):.3f})",
                *ratios,
            ]
        )
    return markdown_table(header, lines)


def estimates_table(table: Table) -> str:
    lines = []
    for row in table.rows:
        quality = row.data["estimates"]
        if quality and not row.failed:
            expected = row.data["expected"]
            lines.append(
                [
                    row.name,
                    share(row.recall("10")),
                    share(expected.get("recall_10")),
                    f"{quality['slope']:.4f}",
                    f"{expected['slope']:.3f}" if "slope" in expected else "",
                    f"{quality['bias']:+.5f}",
                    f"{quality['var_d']:.4f}",
                    f"{expected['var_d']:.4f}" if "var_d" in expected else "",
                ]
            )
    if len(lines) < 2:
        return ""
    return markdown_table(
        [
            "system",
            "recall@10",
            "expected",
            "slope",
            "expected",
            "bias",
            "variance · d",
            "expected",
        ],
        lines,
    )


def dataset_section(tables: list[Table]) -> str:
    first = tables[0].document
    parts = []
    shapes = {
        f"{t.document['dataset']['rows']:,} × {t.document['dataset']['dimension']}, "
        f"{t.document['dataset']['queries']:,} queries, k = {t.document['settings']['k']}, "
        f"{t.document['settings']['threads']} threads"
        for t in tables
    }
    versions = sorted({r.data["version"] for t in tables for r in t.rows if r.data["version"]})
    processors = sorted({t.document["processor"] for t in tables})
    dates = sorted({t.document["date"] for t in tables})
    parts.append(
        f"{first['dataset']['title']}: {'; '.join(sorted(shapes))}.\n"
        f"Processor: {'; '.join(processors)}.\n{', '.join(dates)}, Python {first['python']}, "
        f"{', '.join(versions)}."
    )
    commands = dict.fromkeys(t.document["command"] for t in tables)
    parts.append("```sh\n" + "\n".join(commands) + "\n```")
    for table in tables:
        parts.append(f"#### {table.document['run']['title']}")
        parts.append(main_table(table))
        load = f"Other processes used {table.document['other_load']:.0%} of the machine"
        parts.append(f"{load} while searches were timed" + ("." if table.quiet else ": no times."))
        if quality := estimates_table(table):
            parts.append(quality)
    findings = [item for table in tables for item in table.findings()]
    parts.append("#### Where a peer is ahead")
    parts.append("\n".join(f"* {item}" for item in findings) if findings else "Nowhere.")
    return "\n\n".join(parts)


def summary_section(tables: list[Table]) -> str:
    """One row a system; ours comes from the run in which it is the reference."""
    lines, seen = [], set()
    for table in tables:
        for row in table.rows:
            is_reference = row.name == table.document["run"]["reference"]
            if row.name in seen or (row.data["ours"] and not is_reference):
                continue
            seen.add(row.name)
            name = f"**{row.name}**" if row.data["ours"] else row.name
            if row.failed:
                lines.append([name, error_text(row), "", "", "", ""])
                continue
            lines.append(
                [
                    name,
                    share(row.recall("10")),
                    number(row.per_vector("bytes")),
                    seconds(row.build_s),
                    seconds(row.least("batch_s")),
                    f"{1e3 * row.least('one_s'):.3f}",
                ]
            )
    header = ["", "recall@10", "bytes/vector", "train + add, s", "batch, s", "one query, ms"]
    return markdown_table(header, lines)


def write_csv(tables: list[Table], path: Path) -> None:
    header = [
        "dataset",
        "rows",
        "dimension",
        "queries",
        "k",
        "threads",
        "run",
        "system",
        "version",
        "bits",
        "error",
        "bytes_per_vector",
        "memory_per_vector",
        "recall_1",
        "recall_10",
        "recall_100",
        "train_s",
        "add_s",
        "batch_min_s",
        "batch_median_s",
        "one_min_s",
        "one_median_s",
        "slope",
        "bias",
        "var_d",
    ]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for table in tables:
            document = table.document
            shape = {k: document["dataset"][k] for k in ("rows", "dimension", "queries")}
            limits = {k: document["settings"][k] for k in ("k", "threads")}
            for row in table.rows:
                line = {
                    "dataset": document["dataset"]["name"],
                    **shape,
                    **limits,
                    "run": document["run"]["name"],
                    "system": row.name,
                    "version": row.data["version"],
                    "bits": row.data["bits"],
                    "error": row.data["error"],
                }
                if not row.failed:
                    line |= {
                        "bytes_per_vector": row.per_vector("bytes"),
                        "memory_per_vector": row.per_vector("grown_bytes"),
                        **{f"recall_{at}": row.recall(at) for at in RECALL_AT},
                        "train_s": row.least("train_s"),
                        "add_s": row.least("add_s"),
                        "batch_min_s": row.least("batch_s"),
                        "batch_median_s": row.median("batch_s"),
                        "one_min_s": row.least("one_s"),
                        "one_median_s": row.median("one_s"),
                        **row.data["estimates"],
                    }
                writer.writerow(line)


def update_document(path: Path, sections: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for name, section in sections.items():
        pattern = re.compile(
            rf"(<!-- results: {re.escape(name)} -->\n).*?(<!-- end of results -->)", re.DOTALL
        )
        text = pattern.sub(lambda m, s=section: f"{m.group(1)}{s}\n{m.group(2)}", text)
    path.write_text(text, encoding="utf-8")


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, help="JSON files, or folders of them")
    parser.add_argument("--out", type=Path, help="folder for CSV, Markdown and plots")
    parser.add_argument("--update", nargs="+", type=Path, default=[], help="documents")
    parser.add_argument("--config", type=Path, default=CONFIG, help="where [expected] is read")
    parser.add_argument("--summary", nargs="+", help="runs of the short table; all if not given")
    parser.add_argument("--check", action="store_true", help="fail if a figure is not as expected")
    args = parser.parse_args()
    by_dataset = read_tables(args.inputs, config.load(args.config).expected)
    if not by_dataset:
        print("report.py: no results there", file=sys.stderr)
        return 2
    sections = {}
    all_runs = {t.document["run"]["name"] for tables in by_dataset.values() for t in tables}
    for name, tables in by_dataset.items():
        sections[f"ann/{name}"] = dataset_section(tables)
        short = [t for t in tables if t.document["run"]["name"] in (args.summary or all_runs)]
        sections[f"ann-summary/{name}"] = summary_section(short)
    for document in args.update:
        update_document(document, sections)
    if args.out:
        from . import plots  # matplotlib is needed for plots alone

        args.out.mkdir(parents=True, exist_ok=True)
        for name, tables in by_dataset.items():
            write_csv(tables, args.out / f"{name}.csv")
            text = f"### {tables[0].document['dataset']['title']}\n\n" + sections[f"ann/{name}"]
            (args.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
            plots.draw(tables, args.out, name)
    unexpected = [x for tables in by_dataset.values() for t in tables for x in t.unexpected()]
    print("\n".join(unexpected), end="\n" if unexpected else "")
    if args.check and unexpected:
        return 1
    return 0
