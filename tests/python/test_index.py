"""Indexes: searching, selecting, removing, copying, errors."""

from __future__ import annotations

import copy
import pickle

import numpy
import pytest

import turboquant
from turboquant import IDSelector, IndexTurboQuant, index_factory


def filled(x: numpy.ndarray, **options) -> IndexTurboQuant:
    index = IndexTurboQuant(x.shape[1], **options)
    index.add(x)
    return index


def brute_force(index: IndexTurboQuant, query: numpy.ndarray):
    """All rows from best to worst, one range search wide open."""
    radius = 1e30 if index.metric == "l2" else -1e30
    _, scores, ids = index.range_search(query, radius)
    order = numpy.lexsort((ids, scores if index.metric == "l2" else -scores))
    return scores[order], ids[order]


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
@pytest.mark.parametrize("estimator", ["tq", "t", "qjl", "qjlg", "mse"])
def test_finds_what_exact_search_finds(base, queries, metric, estimator):
    index = filled(base, bits=4, metric=metric, estimator=estimator)
    assert (index.d, len(index), index.ntotal) == (384, 5000, 5000)
    assert (index.metric, index.estimator, index.bits) == (metric, estimator, 4)
    scores, ids = index.search(queries, 10)
    assert scores.shape == ids.shape == (200, 10)
    assert (scores.dtype, ids.dtype) == (numpy.float32, numpy.int64)
    exact = numpy.argsort(-(queries @ base.T), axis=1)[:, :10]  # unit vectors: the same for all
    found = numpy.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, exact)])
    assert found > {"tq": 0.94, "t": 0.94, "qjl": 0.9, "qjlg": 0.85, "mse": 0.93}[estimator]


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
def test_search_equals_range_search(small, metric):
    index = filled(small, metric=metric)
    for query in small[:5]:
        scores, ids = index.search(query, 12)
        all_scores, all_ids = brute_force(index, query)
        assert (ids == all_ids[:12]).all() and (scores == all_scores[:12]).all()


def test_range_search_limits(small):
    index = filled(small, metric="ip")
    limits, scores, ids = index.range_search(small[:7], 20.0)
    assert limits[0] == 0 and limits[-1] == len(scores) == len(ids)
    all_scores = numpy.full((7, 300), -numpy.inf)
    for i in range(7):
        mine = slice(limits[i], limits[i + 1])
        assert (scores[mine] > 20).all()
        all_scores[i, ids[mine]] = scores[mine]
    best, at = index.search(small[:7], 1)
    assert (best[:, 0] == all_scores.max(axis=1)).all() and (at[:, 0] == all_scores.argmax(1)).all()


def test_one_query_and_empty_places(small):
    index = filled(small[:3])
    scores, ids = index.search(small[0], 5)
    assert scores.shape == ids.shape == (5,)
    assert sorted(ids[:3]) == [0, 1, 2] and (ids[3:] == -1).all()
    many_scores, many_ids = index.search(small[:1], 5)
    assert (many_scores[0] == scores).all() and (many_ids[0] == ids).all()
    assert index.search(numpy.empty((0, 40), numpy.float32), 5)[0].shape == (0, 5)


def test_selectors(small):
    index = filled(small)
    wanted = numpy.array([5, 250, 17, 64, 9999])
    mask = numpy.zeros(300, bool)
    mask[wanted[:4]] = True
    expected = [i for i in brute_force(index, small[1])[1] if mask[i]]
    bitmap = numpy.packbits(mask, bitorder="little")
    from_bitmap = IDSelector.from_bitmap(bitmap)
    for selector in (wanted, list(wanted), mask, IDSelector(wanted), from_bitmap):
        ids = index.search(small[1], 6, selector=selector)[1]
        assert ids.tolist() == expected + [-1, -1]
        assert index.range_search(small[1], 1e30, selector=selector)[2].tolist() == sorted(expected)
    assert 5 in IDSelector(wanted) and 6 not in IDSelector(wanted)
    assert 5 in IDSelector(mask) and 6 not in IDSelector(mask) and 10**9 not in IDSelector(mask)


def test_remove_moves_up_without_ids(small):
    index = filled(small)
    decoded = index.reconstruct([2, 4])
    assert index.remove_ids([0, 1, 3, 100000]) == 3
    assert len(index) == 297
    assert (index.reconstruct([0, 1]) == decoded).all()
    assert index.remove_ids(numpy.ones(297, bool)) == 297 and len(index) == 0


def test_ids_of_the_user(small):
    for description in ("IDMap2,TQ3", "IDMap2,TQ3cos"):
        index = index_factory(40, description, "ip")
        index.add_with_ids(small, numpy.arange(300) * 7 + 1000)
        assert index.search(small[3], 1)[1][0] == 1021
        chosen = index.search(small[3], 2, selector=[1000, 1007, 5])[1]
        assert sorted(chosen) == [1000, 1007]
        assert sorted(index.range_search(small[3], -1e30, selector=[1000, 1007])[2]) == [1000, 1007]
        assert index.remove_ids([1021]) == 1
        assert index.search(small[3], 1)[1][0] != 1021
        with pytest.raises(IndexError, match="1021"):
            index.reconstruct(1021)
        again = pickle.loads(pickle.dumps(index))
        assert sorted(again.search(small[3], 2, selector=[1000, 1007])[1]) == [1000, 1007]


def test_reconstruct(small):
    index = filled(small, bits=4)
    one, many = index.reconstruct(7), index.reconstruct([7, 0])
    assert one.shape == (40,) and many.shape == (2, 40) and (many[0] == one).all()
    assert numpy.linalg.norm(one - small[7]) < 0.2 * numpy.linalg.norm(small[7])
    for bad in (-1, 300):
        with pytest.raises(IndexError, match=str(bad)):
            index.reconstruct(bad)


@pytest.mark.parametrize(
    "description",
    ["IVF8,TQ4", "PCA20,TQ4", "TQ2,Refine(TQ4)", "TQ2,Refine(+TQ3)", "HNSW8,TQ4", "IDMap2,TQ4"],
)
def test_composites(small, description):
    index = index_factory(40, description)
    index.train(small)
    assert index.is_trained
    if description.startswith("IDMap"):
        index.add_with_ids(small, numpy.arange(300))
    else:
        index.add(small)
    if "IVF" in description:
        index.nprobe = 8
        assert index.nprobe == 8
        assert index.remove_ids([299]) == 1
        assert index.search(small[0], 3, selector=[1, 2])[1].tolist()[2] == -1
    scores, ids = index.search(small[:100], 1)
    assert (ids[:, 0] == numpy.arange(100)).mean() > 0.95
    assert index.reconstruct(3).shape == (40,)
    for other in (copy.copy(index), copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        other_scores, other_ids = other.search(small[:100], 1)
        assert (other_scores == scores).all() and (other_ids == ids).all()


@pytest.mark.parametrize("description", ["IVF8,TQ3,Refine(+TQ4)", "IDMap2,TQ3,Refine(+TQ4)"])
def test_refined_by_residuals(small, description):
    index, exact = index_factory(40, description, "ip"), small[:50] @ small.T
    index.train(small)
    if description.startswith("IDMap"):
        index.add_with_ids(small, numpy.arange(300))
    else:
        index.add(small)
        index.nprobe = 8
    once = index.search(small[:50], 10)[1]
    index.set_parameter("k_factor_rf", 4)
    scores, ids = index.search(small[:50], 10)
    truth = numpy.argsort(-exact, axis=1)[:, :10]
    found = [sum(len(set(a) & set(b)) for a, b in zip(some, truth)) for some in (once, ids)]
    assert found[1] > found[0] and found[1] > 0.95 * truth.size
    assert abs(scores - numpy.take_along_axis(exact, ids, 1)).max() < 1
    again = pickle.loads(pickle.dumps(index))
    assert (again.search(small[:50], 10)[1] == ids).all()
    row = index.reconstruct(3)
    assert numpy.linalg.norm(row - small[3]) < 0.05 * numpy.linalg.norm(small[3])
    assert sorted(index.search(small[3], 3, selector=[3, 9])[1].tolist()) == [-1, 3, 9]
    if "IVF" in description:
        assert index.nprobe == 8
        with pytest.raises(IndexError, match="300"):
            index.reconstruct(300)


def test_copies_are_independent(small):
    index = filled(small)
    for other in (index.clone(), pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert type(other) is IndexTurboQuant and other.seed == index.seed
        other.reset()
        assert len(other) == 0 and len(index) == 300


def test_factory_names():
    index = index_factory(16, "TQ2qjl", "cosine")
    assert type(index) is IndexTurboQuant
    assert (index.name, index.bits) == ("TQ2qjlcos", 2)
    assert (index.estimator, index.metric) == ("qjl", "cosine")
    assert IndexTurboQuant(16).seed == turboquant.DEFAULT_SEED == index.seed
    assert IndexTurboQuant(16, seed=5).seed == 5
    assert index_factory(16, "TQ3", 1).metric == "l2" and index_factory(16, "TQ3", 0).metric == "ip"
    assert IndexTurboQuant(384, bits=3, metric="ip").code_size == 148


def test_pruned_searches_find_the_same():
    random = numpy.random.default_rng(5)
    centres = random.standard_normal((200, 48))
    x = centres[random.integers(0, 200, 17000)] + 0.6 * random.standard_normal((17000, 48))
    index = filled(x.astype(numpy.float32), bits=4, metric="ip")
    queries = index.reconstruct(numpy.arange(20))
    scanned = [index.search(query, 10) for query in queries]
    assert index.prune_confidence == 0 and index.sign_bytes == 0
    index.prune_confidence = 0.999999
    for query, (scores, ids) in zip(queries, scanned):
        pruned_scores, pruned_ids = index.search(query, 10)
        assert (pruned_ids == ids).all() and (pruned_scores == scores).all()
    assert index.sign_bytes > 17000 * 10
    with pytest.raises(ValueError, match="between 0.5 and 1"):
        index.prune_confidence = 0.5


def test_centred_codes(small):
    shifted = small + 5
    plain, centred = filled(shifted, bits=2), filled(shifted, bits=2, centre=True)
    assert centred.name == "TQ2c" and centred.code_size == plain.code_size + 4
    assert index_factory(16, "TQ2c", "cosine").name == "TQ2ccos"
    rows = numpy.arange(300)
    errors = [((index.reconstruct(rows) - shifted) ** 2).sum() for index in (plain, centred)]
    assert errors[1] < 0.5 * errors[0]
    again = pickle.loads(pickle.dumps(centred))
    assert (again.search(shifted[:9], 5)[0] == centred.search(shifted[:9], 5)[0]).all()


def test_seed_makes_the_codes(small):
    a, b, c = filled(small, seed=1), filled(small, seed=1), filled(small, seed=2)
    assert (a.codes == b.codes).all() and (a.codes != c.codes).any()
    assert a.codes.shape == (300, a.code_size)


def test_errors_are_sentences(small, tmp_path):
    index = filled(small)
    broken = small.copy()
    broken[201, 3] = numpy.nan
    cases = [
        (ValueError, r"bits must be 1 to 4", lambda: IndexTurboQuant(40, bits=5)),
        (ValueError, r"not 'l3'", lambda: IndexTurboQuant(40, metric="l3")),
        (ValueError, r'"tqx"', lambda: IndexTurboQuant(40, estimator="tqx")),
        (ValueError, r"TQ9", lambda: index_factory(40, "TQ9")),
        (ValueError, r"L2norm,IVF4,TQ3", lambda: index_factory(40, "IVF4,TQ3", "cosine")),
        (ValueError, r"\(n, 40\).*not \(2, 39\)", lambda: index.add(small[:2, :39])),
        (ValueError, r"k must be", lambda: index.search(small, 0)),
        (ValueError, r"(row|query) 201", lambda: index.search(broken, 1)),
        (ValueError, r"row 201", lambda: index.add(broken)),
        (TypeError, r"int32", lambda: index.add(small.astype(numpy.int32))),
        (TypeError, r"vectors must be", lambda: index.add("text")),
        (TypeError, r"integers", lambda: index.remove_ids([0.5])),
        (TypeError, r"None", lambda: index.remove_ids(None)),
        (ValueError, r"300 vectors but 2 ids", lambda: index.add_with_ids(small, [1, 2])),
        (AttributeError, r"nprobe", lambda: index.nprobe),
        (FileNotFoundError, r"missing", lambda: turboquant.read_index(tmp_path / "missing")),
        (ValueError, r"threads", lambda: turboquant.set_num_threads(0)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    assert len(index) == 300  # a refused add changes nothing


def test_refused_row_in_a_late_block():
    x = numpy.ones((300000, 16), numpy.float32)
    x[299000, 0] = numpy.inf
    index = IndexTurboQuant(16)
    with pytest.raises(ValueError, match="row 299000"):
        index.add(x)
    assert len(index) == 0
