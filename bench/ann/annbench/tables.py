"""Results as Markdown and CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from .results import RECALL_AT, Row, Table, number, seconds, share


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
    """One row a system; ours comes from the run of its bits, or of fewer."""
    lines, seen = [], set()
    for table in tables:
        reference = table.reference
        for row in table.rows:
            least = 0 if reference is None else reference.data["bits"] or 0
            of_run = (row.data["bits"] or 0) >= least
            if row.name in seen or (row.data["ours"] and not of_run):
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
