"""The parts of bench/ann: configuration, data sets, recall, report."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from annbench import config, curves, datasets, metrics, partition, report, results, tables

ROOT = Path(__file__).resolve().parents[2]


def unit_vectors(n: int, d: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return datasets.normalized(x)


@pytest.mark.parametrize("d", [50, 384])
def test_every_run_of_the_shipped_configuration_has_its_systems(d):
    shipped = config.load(ROOT / "bench/ann/ann.toml")
    for run in shipped.runs.values():
        systems = shipped.systems_of(config.fill(run.systems, {"d": d, "half_d": d // 2}), d)
        assert run.reference in [s.name for s in systems], run.name
        assert all((ROOT / f"bench/ann/annbench/systems/{s.wrapper}.py").exists() for s in systems)


def test_sweep_makes_one_system_for_each_combination():
    entry = {
        "name": "S{bits}-{x}",
        "wrapper": "w",
        "sweep": {"bits": [2, 4], "x": ["a", "b"]},
        "params": {"bits": "{bits}", "text": "x={x} d={d}"},
    }
    systems = config.expand(entry, 64)
    assert [s.name for s in systems] == ["S2-a", "S2-b", "S4-a", "S4-b"]
    assert systems[2].params == {"bits": 4, "text": "x=a d=64"}
    assert systems[2].bits == 4


@pytest.mark.parametrize(
    "data, message",
    [
        ({"sistems": []}, "unknown sections: sistems"),
        ({"settings": {"kk": 1}}, "kk"),
        ({"settings": {"k": 0}}, "settings.k must be positive"),
        ({"systems": [{"name": "a"}]}, "a: lacks wrapper"),
        ({"systems": [{"name": "a", "wrapper": "w", "bit": 4}]}, "a: unknown keys bit"),
        ({"runs": {"r": {"title": "t"}}}, "runs.r"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_entry(data, message):
    with pytest.raises(config.ConfigError, match=message):
        config.parse(data)


def test_unknown_patterns_variables_and_equal_names_are_refused():
    two = config.parse({"systems": [{"name": "a", "wrapper": "w"}] * 2})
    with pytest.raises(config.ConfigError, match="two systems are named 'a'"):
        two.systems_of(["a"], 8)
    one = config.parse({"systems": [{"name": "a", "wrapper": "w"}]})
    with pytest.raises(config.ConfigError, match="no system matches 'b'"):
        one.systems_of(["b"], 8)
    with pytest.raises(config.ConfigError, match="unknown variable"):
        config.fill("{nothing}", {"d": 8})


def test_exact_search_equals_sorting_everything():
    base, queries = unit_vectors(3000, 24, 1), unit_vectors(20, 24, 2)
    base[1000:1010] = base[7]  # equal rows: the smaller id comes first
    products, ids = metrics.exact_search(base, queries, 30, block=701)
    full = np.array([[np.dot(q, x) for x in base.astype(float)] for q in queries.astype(float)])
    order = np.argsort(-np.round(full, 12), axis=1, kind="stable")[:, :30]
    np.testing.assert_allclose(products, np.take_along_axis(full, order, axis=1), atol=1e-12)
    np.testing.assert_array_equal(ids, order)


def test_recall_against_brute_force():
    base, queries = unit_vectors(500, 16, 3), unit_vectors(40, 16, 4)
    truth, ids = metrics.exact_search(base, queries, 20)
    answers = np.random.default_rng(5).permuted(np.tile(np.arange(500), (40, 1)), axis=1)[:, :20]
    answers[:, :7] = ids[:, 3:10]
    for at in (1, 10, 20):
        wanted = [len(set(a[:at]) & set(t[:at])) / at for a, t in zip(answers, ids, strict=True)]
        assert metrics.recall(base, queries, truth, answers, at) == pytest.approx(np.mean(wanted))


def test_recall_counts_equal_rows_as_equal_and_an_id_once():
    base, queries = unit_vectors(100, 16, 6), unit_vectors(1, 16, 7)
    base[60:64] = base[np.argmax(base @ queries[0])]
    truth, ids = metrics.exact_search(base, queries, 2)
    assert metrics.recall(base, queries, truth, np.array([[63, 61]]), 2) == 1
    assert metrics.recall(base, queries, truth, np.array([[63, 63]]), 2) == 0.5
    assert metrics.recall(base, queries, truth, np.array([[-1, 63]]), 2) == 0.5
    assert metrics.recall(base, queries, truth, np.array([[-1, 100]]), 2) == 0


def test_estimate_quality_finds_slope_bias_and_variance():
    random = np.random.default_rng(8)
    truth = random.normal(0, 0.2, (200, 500))
    estimates = 0.9 * truth + random.normal(0, 0.05, truth.shape)
    quality = metrics.estimate_quality(estimates, truth, 64)
    assert quality["slope"] == pytest.approx(0.9, abs=0.003)
    assert quality["bias"] == pytest.approx(0, abs=0.001)
    assert quality["var_d"] == pytest.approx(64 * 0.05**2, rel=0.02)


def test_files_of_every_kind_give_the_same_vectors(tmp_path):
    x = unit_vectors(50, 8, 9)
    np.save(tmp_path / "x.npy", x)
    with open(tmp_path / "x.fbin", "wb") as file:
        np.array(x.shape, dtype="<i4").tofile(file)
        x.tofile(file)
    for name in ("x.npy", "x.fbin"):
        base, asked = datasets.load({"base": name, "queries": 5}, tmp_path)
        assert base.shape == (45, 8) and asked.shape == (5, 8)
        nearest = np.argmax(np.concatenate([base, asked]) @ x.T, axis=1)
        assert sorted(nearest) == list(range(50))  # each row once, in the base or held out
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["train"], file["test"] = x[:40], x[40:]
    base, asked = datasets.load({"base": "x.hdf5"}, tmp_path)
    np.testing.assert_allclose(base, x[:40], atol=1e-7)
    np.testing.assert_allclose(asked, x[40:], atol=1e-7)


def test_rotation_keeps_products(tmp_path):
    np.save(tmp_path / "x.npy", unit_vectors(30, 8, 1))
    plain, asked = datasets.load({"base": "x.npy", "queries": 4}, tmp_path)
    turned, turned_asked = datasets.load({"base": "x.npy", "queries": 4, "rotate": 2}, tmp_path)
    assert np.abs(turned - plain).max() > 0.1
    np.testing.assert_allclose(turned_asked @ turned.T, asked @ plain.T, atol=1e-6)


def test_bad_data_are_refused(tmp_path):
    (tmp_path / "short.fbin").write_bytes(np.array([3, 4], dtype="<i4").tobytes() + bytes(40))
    with pytest.raises(datasets.DatasetError, match="short.fbin"):
        datasets.load({"base": "short.fbin", "queries": 1}, tmp_path)
    with pytest.raises(datasets.DatasetError, match="none of these files"):
        datasets.load({"base": ["a.npy", "b.npy"]}, tmp_path)
    x = unit_vectors(10, 4, 1)
    x[3, 2] = np.nan
    np.save(tmp_path / "nan.npy", x)
    with pytest.raises(datasets.DatasetError, match="not finite"):
        datasets.load({"base": "nan.npy", "queries": 2}, tmp_path)
    np.save(tmp_path / "q.npy", unit_vectors(2, 5, 1))
    with pytest.raises(datasets.DatasetError, match="do not fit"):
        datasets.load({"base": "nan.npy", "queries": "q.npy"}, tmp_path)


def system(name: str, bits: float, ours: bool, recall: float, batch: float, one: float) -> dict:
    return {
        "name": name, "bits": bits, "ours": ours, "error": "", "version": "v", "bytes": 1000,
        "grown_bytes": 2000, "train_s": [0.0, 0.0], "add_s": [0.2, 0.1],
        "batch_s": [batch, 2 * batch],
        "one_s": [one, one], "recall": {"1": recall, "10": recall, "100": recall},
        "estimates": {}, "expected": {},
    }  # fmt: skip


def document(systems: list[dict]) -> dict:
    return {
        "dataset": {"name": "data", "title": "Data", "rows": 10, "dimension": 8, "queries": 4},
        "run": {"name": "r", "title": "A run", "systems": ["*"], "reference": "TQ4", "order": 0},
        "settings": {"k": 10, "threads": 2}, "command": "run.py data r", "date": "2000-01-01",
        "processor": "P", "other_load": 0.01, "python": "3", "systems": systems,
    }  # fmt: skip


def test_report_names_what_a_peer_is_ahead_in():
    ours = system("TQ4", 4, True, 0.95, 1.0, 0.001)
    better = system("better", 4, False, 0.96, 2.0, 0.002)
    faster = system("faster", 8, False, 0.95, 0.5, 0.002)
    worse = system("worse", 4, False, 0.90, 0.1, 0.0001)
    broken = {**system("broken", 4, False, 0, 1, 1), "error": "it | broke\nhere"}
    table = results.Table(document([ours, better, faster, worse, broken]))
    findings = table.findings()
    assert [f.split(":")[0] for f in findings] == ["better"] * 3 + ["faster"]
    assert "recall@10 .9600 against .9500 of TQ4, 100 against 100 bytes a vector" in findings[1]
    assert "batch 2.00 times as fast as TQ4" in findings[3]
    text = tables.dataset_section([table])
    assert "| broken | failed: it / broke here |" in text
    assert "| faster | 100 | 200 | .9500 | .9500 | .9500 | 0.1000 | 0.5000 (0.7500) |" in text


def test_report_gives_no_times_of_a_busy_machine():
    busy = document([system("TQ4", 4, True, 0.95, 1, 1), system("peer", 4, False, 0.96, 0.5, 0.5)])
    busy["other_load"] = 0.5
    table = results.Table(busy)
    assert [f.split(" .")[0] for f in table.findings()] == [
        "peer: recall@1", "peer: recall@10", "peer: recall@100",
    ]  # fmt: skip
    text = tables.dataset_section([table])
    assert "| peer | 100 | 200 | .9600 | .9600 | .9600 |  |" in text and "50%" in text


def test_report_does_not_claim_a_win_without_a_reference():
    broken = {**system("TQ4", 4, True, 0, 1, 1), "error": "gone"}
    table = results.Table(document([broken, system("peer", 4, False, 0.9, 1, 1)]))
    assert table.findings() == ["A run: not judged, TQ4 has no result"]


def test_report_tells_figures_that_are_not_as_expected():
    exact = {**system("TQ4", 4, True, 0.95, 1, 1), "estimates": {"slope": 1.002, "var_d": 0.104}}
    exact["expected"] = {"recall_10": 0.954, "slope": 1.0, "var_d": 0.1}
    assert results.Table(document([exact])).unexpected() == []
    off = {**exact, "expected": {"recall_10": 0.956, "slope": 0.998, "var_d": 0.098}}
    found = results.Table(document([off])).unexpected()
    assert [line.split(" is ")[0] for line in found] == [
        "TQ4: recall_10", "TQ4: slope", "TQ4: var_d",
    ]  # fmt: skip


def test_documents_are_updated_between_their_markers_only(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("a\n<!-- results: ann/x -->\nold\n<!-- end of results -->\nb\n"
                    "<!-- results: ann/y -->\nkept\n<!-- end of results -->\n")  # fmt: skip
    report.update_document(path, {"ann/x": "new \\1"})
    assert path.read_text() == (
        "a\n<!-- results: ann/x -->\nnew \\1\n<!-- end of results -->\nb\n"
        "<!-- results: ann/y -->\nkept\n<!-- end of results -->\n"
    )


def test_rates_between_points_of_a_curve():
    points = [
        {"recall": 0.8, "qps": 1000},
        {"recall": 0.85, "qps": 100},  # beaten in both by the next
        {"recall": 0.9, "qps": 400},
        {"recall": 0.98, "qps": 100},
    ]
    assert curves.rate_at(points, 0.9) == pytest.approx(400)
    assert curves.rate_at(points, 0.94) == pytest.approx(200)  # halves of a logarithmic way
    assert curves.rate_at(points, 0.5) == 1000
    assert curves.rate_at(points, 0.99) is None


def test_a_swept_parameter_gives_a_setting_for_each_value():
    assert curves.settings_of({"nprobe": [1, 2]}) == [{"nprobe": 1}, {"nprobe": 2}]
    assert curves.settings_of([{}]) == [{}]


def test_results_are_replaced_by_name_while_the_data_are_the_same():
    old = {"rows": 5, "results": [{"name": "a", "qps": 1}, {"name": "b", "qps": 2}]}
    new = {"rows": 5, "results": [{"name": "b", "qps": 3}, {"name": "c", "qps": 4}]}
    merged = curves.merge(old, new)["results"]
    assert [(r["name"], r["qps"]) for r in merged] == [("a", 1), ("b", 3), ("c", 4)]
    assert curves.merge(old, {**new, "rows": 6})["results"] == new["results"]


def test_mixtures_lie_between_two_rows():
    base = np.eye(8, dtype=np.float32)
    rows = datasets.mixed(base, 100, seed=1)
    assert rows.shape == (100, 8)
    np.testing.assert_array_equal(rows[:8], base)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)
    assert (rows.max(axis=1) >= 0.5 - 1e-6).all()
    np.testing.assert_array_equal(rows, datasets.mixed(base, 100, seed=1))


def test_passages_are_mixtures_of_one_topic_and_the_same_in_any_pieces():
    base = np.eye(8, dtype=np.float16)
    rows = datasets.passages(base, 3, 20, seed=1, block=8)
    assert rows.shape == (20, 24)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    topics = rows.reshape(20, 3, 8).argmax(axis=2)  # of the larger share
    assert (topics == topics[:, :1]).all()
    assert len(np.unique(topics)) > 3
    later = datasets.passages(base, 3, 12, seed=1, first=8, block=8)
    np.testing.assert_array_equal(later, rows[8:])


def test_shipped_curves_have_names_of_their_own_and_wrappers():
    with open(ROOT / "bench/ann/curves.toml", "rb") as file:
        data = tomllib.load(file)
    systems = []
    for curve in data["curves"]:
        assert curves.settings_of(curve.pop("search"))
        systems += config.expand(curve, 384)
    assert len({system.name for system in systems}) == len(systems)
    assert all((ROOT / f"bench/ann/annbench/systems/{s.wrapper}.py").exists() for s in systems)
    lists = [s for s in systems if "centroids" in s.params]
    assert lists and all(f"{s.params['centroids']}" in s.name for s in lists)


def test_spherical_means_find_clusters_and_are_of_unit_length():
    centres = unit_vectors(8, 32, 1)
    near = np.repeat(centres, 40, axis=0) + 0.05 * unit_vectors(320, 32, 2)
    rows = datasets.normalized(near.astype(np.float32))
    found = partition.spherical_means(rows, 24, seed=1)
    assert found.shape == (24, 32) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    numbers = partition.Products(rows).nearest(found)
    np.testing.assert_array_equal(numbers, (rows @ found.T).argmax(axis=1))
    assert (np.sum(rows * found[numbers], axis=1) > 0.99).all()


def test_sums_of_lists_leave_empty_ones_zero():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    sums = partition.Products(rows).sums(np.array([3, 0, 3, 0, 0, 3]), 5)
    np.testing.assert_array_equal(sums, [[16, 19], [0, 0], [0, 0], [14, 17], [0, 0]])
