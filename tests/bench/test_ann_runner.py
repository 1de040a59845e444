"""The runner of bench/ann, with real systems in processes of their own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from annbench import curves, datasets
from annbench.config import Settings, System
from annbench.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(
    k=20, threads=1, repetitions=2, build_repetitions=1, one_queries=5, estimate_queries=10
)
EXACT = System("exact", "numpy_index", bits=32, estimates=True)


@pytest.fixture(scope="module")
def vectors():
    entry = {"synthetic": True, "rows": 2000, "queries": 30, "dimension": 64, "clusters": 10}
    return datasets.load(entry, ROOT)


def run(vectors, systems, interpreters=None):
    log = subprocess.DEVNULL
    return Runner(SETTINGS, interpreters or {}, *vectors, log, progress=io.StringIO()).run(systems)


def test_exact_search_scores_one(vectors):
    runner = Runner(SETTINGS, {}, *vectors, subprocess.DEVNULL, progress=io.StringIO())
    (result,) = runner.run([EXACT])
    assert 0 <= runner.other_load <= 1
    assert result.error == ""
    assert result.recall == {1: 1.0, 10: 1.0}
    assert result.bytes == vectors[0].nbytes
    assert len(result.batch_s) == len(result.one_s) == 2 and min(result.batch_s) > 0
    assert result.estimates["slope"] == pytest.approx(1, abs=1e-5)
    assert result.estimates["var_d"] == pytest.approx(0, abs=1e-8)


def test_exact_products_are_kept_for_the_same_vectors_only(vectors, tmp_path):
    base, queries = vectors

    def exact(base, queries):
        log = subprocess.DEVNULL
        return Runner(SETTINGS, {}, base, queries, log, io.StringIO(), tmp_path).exact_products()

    first = exact(base, queries)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(exact(base, queries), first)
    other = exact(base, -queries)
    assert len(list(tmp_path.iterdir())) == 2 and not np.array_equal(other, first)


def test_systems_that_fail_are_listed_and_do_not_stop_the_others(vectors):
    systems = [
        System("no such module", "absent"),
        System("no interpreter", "numpy_index", python="elsewhere"),
        System("cannot start", "numpy_index", python="missing"),
        System("dies", "numpy_index", python="false"),
        System("bad parameter", "numpy_index", params={"threads": 3}),
        EXACT,
    ]
    results = run(vectors, systems, {"missing": "/nonexistent/python", "false": "/bin/false"})
    assert [r.system.name for r in results] == [s.name for s in systems]
    errors = {r.system.name: r.error for r in results}
    assert "ModuleNotFoundError" in errors["no such module"]
    assert "no interpreter is named for 'elsewhere'" in errors["no interpreter"]
    assert "/nonexistent/python" in errors["cannot start"]
    assert "its process ended with 1" in errors["dies"]
    assert "TypeError" in errors["bad parameter"]
    assert errors["exact"] == "" and results[-1].recall[10] == 1.0


@pytest.mark.parametrize(
    "module, system, least",
    [
        ("turboquant", System("TQ4", "turboquant_index", {"bits": 4}, estimates=True), 0.85),
        ("faiss", System("SQ8", "faiss_index", {"factory": "SQ8"}, estimates=True), 0.95),
    ],
)
def test_real_systems(vectors, module, system, least):
    pytest.importorskip(module)
    (result,) = run(vectors, [system])
    assert result.error == ""
    assert least < result.recall[10] <= 1
    assert 64 * 4 / 8 * 2000 <= result.bytes < vectors[0].nbytes
    assert result.estimates["slope"] == pytest.approx(1, abs=0.01)


def test_the_programs_from_parameters_to_tables(tmp_path):
    config = tmp_path / "small.toml"
    config.write_text("""
        [settings]
        k = 10
        threads = 1
        repetitions = 1
        build_repetitions = 1
        one_queries = 3
        [datasets.small]
        title = "Small"
        synthetic = true
        rows = 300
        queries = 10
        dimension = 16
        [[systems]]
        name = "exact"
        wrapper = "numpy_index"
        bits = 32
        ours = true
        [[systems]]
        name = "gone"
        wrapper = "absent"
        [runs.all]
        title = "All of them"
        reference = "exact"
        systems = ["*"]
        """)
    programs = ROOT / "bench/ann"
    subprocess.run(
        [sys.executable, programs / "run.py", "small", "all", "--config", config]
        + ["--out", tmp_path, "--rows", "200"],
        check=True,
        capture_output=True,
    )
    made = json.loads((tmp_path / "small-all.json").read_text())
    assert made["dataset"]["rows"] == 200 and made["systems"][0]["recall"]["10"] == 1.0
    document = tmp_path / "doc.md"
    document.write_text("<!-- results: ann/small -->\n<!-- end of results -->\n")
    subprocess.run(
        [sys.executable, programs / "report.py", tmp_path, "--update", document], check=True
    )
    text = document.read_text()
    assert "| exact | 64 |" in text and "ModuleNotFoundError" in text
    pytest.importorskip("matplotlib")
    subprocess.run(
        [sys.executable, programs / "report.py", tmp_path, "--out", tmp_path], check=True
    )
    assert (tmp_path / "small.csv").read_text().count("\n") == 3
    for kind in ("batch", "one", "bytes"):
        assert (tmp_path / f"small-{kind}.svg").stat().st_size > 1000
        assert (tmp_path / f"small-{kind}.png").stat().st_size > 1000


def test_curves_in_turns_from_built_and_from_stored_indexes(vectors, tmp_path):
    settings = Settings(k=10, threads=1, repetitions=3)
    measured = curves.Curves(settings, *vectors, subprocess.DEVNULL)
    measured.prepare(tmp_path, tmp_path, "exact")
    chosen = [
        (System("whole", "turboquant_factory", {"factory": "TQ4"}), [{}]),
        (
            System("lists", "turboquant_factory", {"factory": "IVF64,TQ4"}),
            [{"nprobe": 1}, {"nprobe": 64}],
        ),
        (System("none", "no_such_wrapper"), [{}]),
    ]
    store = tmp_path / "store"
    assert len(measured.measure(chosen, store, repetitions=0)) == 3
    assert sorted(path.name for path in store.iterdir()) == ["lists", "whole"]
    built = measured.measure(chosen, store, settings.repetitions)
    fresh = measured.measure(chosen, None, settings.repetitions)
    assert "no_such_wrapper" in built[2]["error"] and built[2]["points"] == []
    assert [p["recall"] for p in built[1]["points"]] == [p["recall"] for p in fresh[1]["points"]]
    assert built[1]["points"][0]["recall"] < built[1]["points"][1]["recall"] > 0.7
    for result in built[:2]:
        stored = json.loads((store / result["name"] / "times.json").read_text())
        assert stored.items() <= result.items()
        assert result["bytes"] > 0 and result["grown_bytes"] > 0
        assert all(len(point["times"]) == 3 for point in result["points"])


def test_wrong_arguments_give_one_line(tmp_path):
    command = [sys.executable, ROOT / "bench/ann/run.py"]
    for arguments in (["nowhere", "bits4"], ["wordnet", "no-such-run"]):
        done = subprocess.run(
            [*command, *arguments, "--out", tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stderr.startswith("run.py: ") and done.stderr.count("\n") == 1
