"""Plots of a data set's tables: recall against queries a second, and against bytes a vector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "turboquant"  # equal input, equal file
import matplotlib.pyplot as plt  # noqa: E402

OURS = "this project"


def family(row: Any) -> str:
    if row.data["ours"]:
        return OURS
    return row.name.split(" ")[0]


def best_rows(tables: list[Any]) -> list[Any]:
    """Each system once; ours from the run in which it is the reference, if there is one."""
    rows: dict[str, Any] = {}
    for table in tables:
        for row in table.rows:
            if row.failed or row.recall("10") is None:
                continue
            if row.name not in rows or row.name == table.document["run"]["reference"]:
                rows[row.name] = row
    return list(rows.values())


def scatter(
    rows: list[Any], value: Callable[[Any], float | None], axis: str, title: str, stem: Path
) -> None:
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    families = sorted({family(row) for row in rows}, key=lambda name: (name != OURS, name))
    markers = "os^vD<>Pph*X"
    for number, name in enumerate(families):
        points = [(r.recall("10"), value(r), r) for r in rows if family(r) == name]
        points = [p for p in points if p[1] is not None]
        size = 70 if name == OURS else 30
        axes.scatter(
            [p[0] for p in points],
            [p[1] for p in points],
            s=size,
            label=name,
            marker=markers[number % len(markers)],
            zorder=3 if name == OURS else 2,
        )
        for recall, height, row in points:
            label = row.name.removeprefix(name).strip()
            axes.annotate(
                label,
                (recall, height),
                fontsize=5.5,
                xytext=(4, 3),
                textcoords="offset points",
                alpha=0.8,
            )
    axes.set_yscale("log")
    axes.set_xlabel("recall@10")
    axes.set_ylabel(axis)
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(f"{stem}.svg", metadata={"Date": None})
    figure.savefig(f"{stem}.png", dpi=150)
    plt.close(figure)


def draw(tables: list[Any], folder: Path, name: str) -> None:
    rows = best_rows(tables)
    document = tables[0].document
    shape = document["dataset"]
    queries = shape["queries"]
    title = f"{shape['title']}, {shape['rows']:,} × {shape['dimension']}"
    threads = f"{document['settings']['threads']} threads, k = {document['settings']['k']}"
    scatter(
        rows,
        lambda r: queries / r.least("batch_s"),
        "queries a second, in a batch",
        f"{title}, {threads}",
        folder / f"{name}-batch",
    )
    scatter(
        rows,
        lambda r: 1 / r.least("one_s"),
        "queries a second, one at a time",
        f"{title}, {threads}",
        folder / f"{name}-one",
    )
    scatter(
        rows, lambda r: r.per_vector("bytes"), "bytes a vector", title, folder / f"{name}-bytes"
    )


def curves(document: dict[str, Any], stem: Path) -> None:
    """Recall against queries a second, a line for each index."""
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    markers = "os^vD<>Pph*X"
    for number, result in enumerate(r for r in document["results"] if r["points"]):
        axes.plot(
            [point["recall"] for point in result["points"]],
            [point["qps"] for point in result["points"]],
            marker=markers[number % len(markers)],
            linewidth=2 if result["ours"] else 1,
            linestyle="-" if result["ours"] else "--",
            label=result["name"],
        )
    axes.set_yscale("log")
    axes.set_xlabel(f"recall@{document['k']}")
    axes.set_ylabel(f"queries/s, {document['threads']} threads")
    axes.set_title(f"{document['title']}, {document['rows']:,} × {document['dimension']}", fontsize=10)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=7)
    figure.savefig(f"{stem}.svg", metadata={"Date": None})
    figure.savefig(f"{stem}.png", dpi=150)
    plt.close(figure)
