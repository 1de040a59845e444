"""Index files: exchange with the C++ program bit for bit, mapping, damage."""

from __future__ import annotations

import os
import pathlib
import subprocess

import numpy
import pytest

import turboquant
from conftest import DATA
from turboquant import IndexTurboQuant, index_factory

PROGRAM = os.environ.get("TURBOQUANT_INDEX_PROGRAM", "")
needs_program = pytest.mark.skipif(
    not PROGRAM, reason="TURBOQUANT_INDEX_PROGRAM does not name the turboquant-index program"
)


def run(*arguments: object) -> None:
    subprocess.run([PROGRAM, *map(str, arguments), "--progress", "none"], check=True)


@needs_program
@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
@pytest.mark.parametrize("name", ["TQ1", "TQ2", "TQ3", "TQ4", "TQ3qjl", "TQ2qjlg", "TQ4mse"])
def test_equal_to_cpp_bit_for_bit(name, metric, tmp_path):
    cpp_file = tmp_path / "cpp.tqi"
    factory, cpp_metric = (name + "cos", "ip") if metric == "cosine" else (name, metric)
    run("build", "--input", DATA / "base.npy", "--factory", factory, "--metric", cpp_metric,
        "--output", cpp_file)  # fmt: skip
    run("search", "--index", cpp_file, "--queries", DATA / "queries.npy", "-k", 10,
        "--output", tmp_path / "ids.npy", "--distances", tmp_path / "scores.npy")  # fmt: skip
    index = index_factory(384, name, metric)
    index.add(numpy.load(DATA / "base.npy"))
    scores, ids = index.search(numpy.load(DATA / "queries.npy"), 10)
    assert (ids == numpy.load(tmp_path / "ids.npy")).all()
    cpp_scores = numpy.load(tmp_path / "scores.npy")
    assert cpp_scores.dtype == numpy.float32 and cpp_scores.tobytes() == scores.tobytes()
    turboquant.write_index(index, tmp_path / "python.tqi")
    assert (tmp_path / "python.tqi").read_bytes() == cpp_file.read_bytes()


@needs_program
def test_ivf_equal_to_cpp(tmp_path):
    cpp_file = tmp_path / "cpp.tqi"
    run("build", "--input", DATA / "base.npy", "--factory", "IVF16,TQ4", "--metric", "l2",
        "--output", cpp_file)  # fmt: skip
    run("search", "--index", cpp_file, "--queries", DATA / "queries.npy", "-k", 10,
        "--param", "nprobe=4",
        "--output", tmp_path / "ids.npy", "--distances", tmp_path / "scores.npy")  # fmt: skip
    for mmap in (False, True):
        index = turboquant.read_index(cpp_file, mmap=mmap)
        index.nprobe = 4
        scores, ids = index.search(numpy.load(DATA / "queries.npy"), 10)
        assert (ids == numpy.load(tmp_path / "ids.npy")).all()
        assert (scores == numpy.load(tmp_path / "scores.npy")).all()


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
def test_mapped_index(small, tmp_path, metric):
    index = IndexTurboQuant(40, bits=3, metric=metric)
    index.add(small)
    path = tmp_path / "index.tqi"
    turboquant.write_index(index, path)
    mapped = turboquant.read_index(str(path), mmap=True)
    assert (len(mapped), mapped.d) == (300, 40)
    for selector in (None, [4, 5, 200]):
        for mine, theirs in zip(
            index.search(small, 7, selector=selector), mapped.search(small, 7, selector=selector)
        ):
            assert mine.tobytes() == theirs.tobytes()
        for mine, theirs in zip(index.range_search(small, 5), mapped.range_search(small, 5)):
            assert mine.tobytes() == theirs.tobytes()
    assert (mapped.reconstruct([1, 299]) == index.reconstruct([1, 299])).all()
    for change in (lambda: mapped.add(small), mapped.reset, lambda: mapped.remove_ids([1])):
        with pytest.raises(ValueError):
            change()
    maps = pathlib.Path("/proc/self/maps").read_text()
    assert str(path) in maps
    del mapped
    assert str(path) not in pathlib.Path("/proc/self/maps").read_text()


def test_damage_is_found(small, tmp_path):
    index = IndexTurboQuant(40)
    index.add(small)
    data = bytearray(index.to_bytes())
    path = tmp_path / "index.tqi"
    path.write_bytes(data[:-9])
    for mmap in (False, True):
        with pytest.raises(ValueError, match="ends inside"):
            turboquant.read_index(path, mmap=mmap)
    data[-500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        turboquant.read_index(path)
    with pytest.raises(ValueError, match="checksum"):
        turboquant.read_index(path, mmap=True, check=True)
    path.write_bytes(b"")
    for mmap in (False, True):
        with pytest.raises(ValueError):
            turboquant.read_index(path, mmap=mmap)


def test_two_level_codes(small, tmp_path):
    flat = index_factory(40, "TQ4")
    index = index_factory(40, "TQ4r2")
    for each in (flat, index):
        each.add(small)
    index.set_parameter("k_factor_rf", 300)
    path = tmp_path / "two.tqi"
    turboquant.write_index(index, path, pack=True)
    again = turboquant.read_index(path)
    again.set_parameter("k_factor_rf", 300)
    for each in (index, again, index.clone()):
        for mine, theirs in zip(each.search(small, 7), flat.search(small, 7)):
            assert mine.tobytes() == theirs.tobytes()
    with pytest.raises(ValueError, match="k_factor"):
        index.set_parameter("k_factor_rf", 0)


def test_packed_files(small, tmp_path):
    for name in ("TQ4", "IDMap2,TQ3", "IVF8,TQ2"):
        index = index_factory(40, name)
        index.train(small)
        index.add_with_ids(small, range(300)) if "IDMap" in name else index.add(small)
        path = tmp_path / "packed.tqi"
        turboquant.write_index(index, path, pack=True)
        assert path.read_bytes() == index.to_bytes(pack=True)
        assert path.stat().st_size < len(index.to_bytes())
        again = turboquant.read_index(path)
        assert again.to_bytes() == index.to_bytes()
        if name != "IDMap2,TQ3":  # which is read into memory all the same
            with pytest.raises(ValueError, match="packed"):
                turboquant.read_index(path, mmap=True)


def test_bytes(small):
    index = index_factory(40, "IDMap2,TQ3")
    index.add_with_ids(small, range(5, 305))
    again = turboquant.Index.from_bytes(index.to_bytes())
    assert (again.search(small, 3)[1] == index.search(small, 3)[1]).all()
    assert again.to_bytes() == index.to_bytes()
