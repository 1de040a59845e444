#!/usr/bin/env python3
"""Measures this project's index beside its peers, on the same vectors, in the same run.

  bench/ann/run.py wordnet bits4 bits3 --out build/bench/ann
  bench/ann/run.py path/to/glove-100-angular.hdf5 bits4
  bench/ann/report.py build/bench/ann --out build/bench/ann     # tables and plots

The first argument names an entry of [datasets] in ann.toml, or a .npy, .fbin or .hdf5 file; the
others name entries of [runs]. Each run makes one JSON file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from annbench import config, datasets
from annbench.machine import processor
from annbench.runner import Result, Runner

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def as_data(result: Result) -> dict[str, Any]:
    data = asdict(result)
    return {**data.pop("system"), **data}


def dataset_entry(name: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if name in known:
        return known[name]
    if Path(name).suffix in (".npy", ".fbin", ".hdf5", ".h5"):
        return {"title": Path(name).name, "base": str(Path(name).resolve())}
    raise config.ConfigError(f"no data set '{name}': there are {', '.join(known)}, or name a file")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--config", type=Path, default=HERE / "ann.toml")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "ann")
    parser.add_argument("--base-key", help="data set of an HDF5 file (train)")
    parser.add_argument("--queries", help="a file of queries, or how many rows to hold out")
    parser.add_argument("--rows", type=int, help="use the first rows only")
    parser.add_argument("--query-rows", type=int, help="use the first queries only")
    parser.add_argument("--rotate", type=int, metavar="SEED", help="rotate all vectors first")
    parser.add_argument("--dimension", type=int, help="of the synthetic data set")
    parser.add_argument("--k", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--build-repetitions", type=int)
    parser.add_argument("--estimate-queries", type=int)
    parser.add_argument("--systems", nargs="+", help="patterns, in place of those of the runs")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an entry of [interpreters]",
    )
    parser.add_argument("--label", default="", help="added to the names of the JSON files")
    return parser.parse_args()


def interpreters(config_entries: dict[str, str], options: list[str]) -> dict[str, str]:
    entries = {name: str(ROOT / path) for name, path in config_entries.items()}
    entries.update(option.split("=", 1) for option in options)
    return {name: os.path.abspath(path) for name, path in entries.items() if Path(path).exists()}


def main() -> int:
    args = arguments()
    try:
        settings = config.load(args.config)
        entry = dict(dataset_entry(args.dataset, settings.datasets))
        if args.queries:
            entry["queries"] = (
                int(args.queries) if args.queries.isdigit() else str(Path(args.queries).resolve())
            )
        if args.rotate is not None:
            entry["rotate"] = args.rotate
        if args.base_key:
            entry["base_key"] = args.base_key
        if args.dimension:
            entry["dimension"] = args.dimension
        if entry.get("synthetic") and args.rows:
            entry["rows"] = args.rows
        names = ("k", "threads", "repetitions", "build_repetitions", "estimate_queries")
        given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        chosen = replace(settings.settings, **given)
        # The data are read by this process, which may use as many threads as the systems.
        base, queries = datasets.load(entry, ROOT, args.rows, args.query_rows)
        wanted = []
        for name in args.runs:
            if name not in settings.runs:
                raise config.ConfigError(f"no run '{name}': there are {', '.join(settings.runs)}")
            run = settings.runs[name]
            d = base.shape[1]
            patterns = config.fill(args.systems or run.systems, {"d": d, "half_d": d // 2})
            wanted.append((run, settings.systems_of(patterns, d)))
    except (config.ConfigError, datasets.DatasetError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    pythons = interpreters(settings.interpreters, args.python)
    for run, systems in wanted:
        stem = "-".join(filter(None, [Path(args.dataset).stem, run.name, args.label]))
        with open(args.out / f"{stem}.log", "w", encoding="utf-8") as log:
            runner = Runner(chosen, pythons, base, queries, log, cache=args.out)
            results = runner.run(systems)
        document = {
            "dataset": {
                "name": Path(args.dataset).stem,
                "title": entry.get("title", ""),
                "rows": len(base),
                "queries": len(queries),
                "dimension": base.shape[1],
            },
            "run": {**asdict(run), "order": list(settings.runs).index(run.name)},
            "settings": asdict(chosen),
            "command": shlex.join(["bench/ann/run.py", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "processor": processor(),
            "other_load": runner.other_load,
            "python": platform.python_version(),
            "systems": [as_data(result) for result in results],
        }
        path = args.out / f"{stem}.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
