"""TurboQuant inside FAISS's own Python module."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys

import numpy
import pytest

import turboquant
import turboquant.faiss

faiss = pytest.importorskip("faiss", reason="FAISS's Python module is not installed")
if faiss.__version__ not in turboquant.faiss.supported_versions():
    reason = f"there is no plugin for FAISS {faiss.__version__}"
    if faiss.__version__ == os.environ.get("TURBOQUANT_FAISS_VERSION"):
        pytest.fail(f"{reason}, which the package was built with", pytrace=False)
    pytest.skip(reason, allow_module_level=True)

FLAT_AND_AROUND = [
    "TQ3", "TQ2qjl", "TQ4mse", "IDMap,TQ3", "IDMap2,TQ4", "PCA32,TQ3", "L2norm,TQ3", "IVF16,TQ4",
    "IVF16_HNSW8,TQ3", "PCAR32,IVF16,TQ4", "TQ4,RFlat", "TQ2,Refine(TQ4)", "HNSW16,TQ3",
    "TQ3,Refine(+TQ3)", "IDMap2,TQ4,Refine(+TQ2)", "IVF16,TQ4,Refine(+TQ4)",
    "IVF16(TQ3),Flat", "Flat", "IVF16,Flat",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def installed():
    with pytest.raises(RuntimeError, match="could not parse index string TQ3"):
        faiss.index_factory(8, "TQ3")  # FAISS as it comes
    turboquant.faiss.install()
    turboquant.faiss.install()
    assert turboquant.faiss.is_installed()


@pytest.fixture(scope="module")
def x() -> numpy.ndarray:
    return numpy.random.default_rng(5).standard_normal((1000, 64), dtype=numpy.float32)


def filled(description: str, metric: int, x: numpy.ndarray):
    index = faiss.index_factory(64, description, metric)
    index.train(x)
    if description.startswith("IDMap"):
        index.add_with_ids(x, numpy.arange(len(x)) + 5000)
    else:
        index.add(x)
    return index


def assert_same(a, b, x) -> None:
    for one, other in zip(a.search(x[:20], 5), b.search(x[:20], 5)):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("description", FLAT_AND_AROUND)
def test_every_string(description, metric, x, tmp_path):
    index = filled(description, metric, x)
    scores, ids = index.search(x[:20], 5)
    assert (ids >= 0).all()
    path = str(tmp_path / "index.faiss")
    faiss.write_index(index, path)
    assert_same(index, faiss.read_index(path), x)
    assert_same(index, faiss.deserialize_index(faiss.serialize_index(index)), x)
    if "TQ" not in description and "Refine" in description:
        return
    assert_same(index, faiss.clone_index(index), x)
    assert_same(index, pickle.loads(pickle.dumps(index)), x)
    fields = turboquant.faiss.fields(index)
    assert (fields is None) == ("TQ" not in description)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("name", ["TQ1", "TQ3", "TQ4", "TQ3t", "TQ3qjl", "TQ2mse"])
def test_same_bits_as_the_package(name, metric, x, tmp_path):
    number = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    theirs = filled(name, number, x)
    ours = turboquant.index_factory(64, name, metric)
    ours.add(x)
    assert_same(theirs, ours, x)
    assert (turboquant.faiss.codes(theirs) == ours.codes).all()
    fields = turboquant.faiss.fields(theirs)
    assert fields.d == 64 and fields.ntotal == 1000 and fields.code_size == ours.code_size
    assert (fields.bits, fields.estimator, fields.metric) == (ours.bits, ours.estimator, metric)
    assert fields.seed == ours.seed and not fields.is_ivf
    path = str(tmp_path / "index.faiss")  # files go both ways
    faiss.write_index(theirs, path)
    assert_same(turboquant.read_index(path), ours, x)
    turboquant.write_index(ours, path)
    assert_same(faiss.read_index(path), ours, x)


def test_other_operations(x):
    index = filled("TQ4", faiss.METRIC_INNER_PRODUCT, x)
    limits, scores, ids = index.range_search(x[:3], 30.0)
    assert limits[-1] == len(ids) and (scores > 30).all()
    assert numpy.linalg.norm(index.reconstruct(3) - x[3]) < 0.2 * numpy.linalg.norm(x[3])
    selector = faiss.IDSelectorRange(10, 20)
    found = index.search(x[:3], 4, params=faiss.SearchParameters(sel=selector))[1]
    assert ((found >= 10) & (found < 20)).all()
    assert index.remove_ids(selector) == 10 and index.ntotal == 990
    index.reset()
    assert index.ntotal == 0
    ivf = filled("IVF16,TQ4", faiss.METRIC_L2, x)
    assert turboquant.faiss.fields(ivf).is_ivf
    with pytest.raises(ValueError, match="flat"):
        turboquant.faiss.codes(ivf)
    everything = faiss.SearchParametersIVF(nprobe=16)
    assert (ivf.search(x[:50], 1, params=everything)[1][:, 0] == numpy.arange(50)).all()
    with pytest.raises(RuntimeError, match="TQ9"):
        faiss.index_factory(64, "TQ9")
    with pytest.raises(RuntimeError, match="TQ3,Bogus"):
        faiss.index_factory(64, "TQ3,Bogus")


SEARCH = """
import sys, numpy, faiss, turboquant.faiss
turboquant.faiss.install()
path, = sys.argv[1:]
index = faiss.read_index(path)
x = numpy.random.default_rng(5).standard_normal((1000, 64), dtype=numpy.float32)
selector = faiss.IDSelectorBatch(numpy.arange(5100, 5200))
scores, ids = index.search(x[:20], 5, params=faiss.SearchParameters(sel=selector))
print(scores.tobytes().hex(), ids.tobytes().hex())
"""


@pytest.mark.parametrize("description", ["IDMap,TQ3", "IDMap2,TQ3"])
def test_selector_behind_ids_and_a_new_process(description, x, tmp_path):
    index = filled(description, faiss.METRIC_INNER_PRODUCT, x)
    selector = faiss.IDSelectorBatch(numpy.arange(5100, 5200))
    scores, ids = index.search(x[:20], 5, params=faiss.SearchParameters(sel=selector))
    assert ((ids >= 5100) & (ids < 5200)).all()
    everything = index.search(x[:20], 1000)
    for row in range(20):
        inside = (everything[1][row] >= 5100) & (everything[1][row] < 5200)
        assert (everything[1][row][inside][:5] == ids[row]).all()
        assert (everything[0][row][inside][:5] == scores[row]).all()
    path = str(tmp_path / "index.faiss")
    faiss.write_index(index, path)
    command = [sys.executable, "-c", SEARCH, path]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out.split() == [scores.tobytes().hex(), ids.tobytes().hex()]


def test_other_versions_are_refused():
    program = """
import faiss, turboquant.faiss
faiss.__version__ = "1.5.2"
try:
    turboquant.faiss.install()
except RuntimeError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "no plugin for FAISS 1.5.2" in out and "FAISS_SOURCE_DIR" in out


def test_fields_need_the_plugin():
    program = """
import faiss, turboquant.faiss
try:
    turboquant.faiss.fields(faiss.IndexFlatL2(4))
except RuntimeError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "install() first" in out


def test_the_extension_hides_its_own_faiss():
    extension = ctypes.CDLL(turboquant._core.__file__)
    assert not hasattr(extension, "_ZN5faiss11clone_indexEPKNS_5IndexE")
    for first, second in (("faiss", "turboquant"), ("turboquant", "faiss")):
        program = f"""
import {first}, {second}, numpy
import faiss, turboquant
x = numpy.random.default_rng(0).standard_normal((500, 16), dtype=numpy.float32)
theirs, ours = faiss.index_factory(16, "IVF4,Flat"), turboquant.index_factory(16, "IVF4,Flat")
for index in (theirs, ours):
    index.train(x)
    index.add(x)
print((theirs.search(x, 1)[1] == ours.search(x, 1)[1]).mean())
"""
        command = [sys.executable, "-c", program]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert float(out) > 0.99
