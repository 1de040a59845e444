"""Turns the JSON files of run.py into CSV, Markdown and plots, and updates documents.

  bench/ann/report.py build/bench/ann --out build/bench/ann
  bench/ann/report.py build/bench/ann --update docs/benchmarks.md README.md

In a document, what stands between `<!-- results: NAME -->` and `<!-- end of results -->` is
replaced, where NAME is ann/DATASET (all tables) or ann-summary/DATASET (one short table).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from . import config
from .results import read_tables
from .tables import dataset_section, summary_section, write_csv

CONFIG = Path(__file__).resolve().parent.parent / "ann.toml"


def update_document(path: Path, sections: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for name, section in sections.items():
        pattern = re.compile(
            rf"(<!-- results: {re.escape(name)} -->\n).*?(<!-- end of results -->)", re.DOTALL
        )
        text = pattern.sub(lambda m, s=section: f"{m.group(1)}{s}\n{m.group(2)}", text)
    path.write_text(text, encoding="utf-8")


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
