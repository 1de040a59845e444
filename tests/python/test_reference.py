"""The names of the PyTorch reference."""

from __future__ import annotations

import numpy
import pytest

from turboquant import TurboQuant, TurboQuantIndex, TurboQuantMSE


def kinds():
    yield "numpy", lambda x: x
    try:
        import torch
    except ImportError:
        return
    yield "torch", torch.from_numpy


@pytest.fixture(params=list(kinds()), ids=lambda kind: kind[0])
def make(request):
    """Makes a numpy array an array of the kind under test."""
    return request.param[1]


def test_mse(small, make):
    quantizer = TurboQuantMSE(40, bit_width=4, seed=3)
    x = make(small.reshape(3, 100, 40))
    output = quantizer.quantize(x)
    assert type(output.codes) is type(output.norms) is type(x)
    assert output.bit_width == 4 and tuple(output.norms.shape) == (3, 100)
    decoded = quantizer.dequantize(output)
    assert type(decoded) is type(x) and tuple(decoded.shape) == (3, 100, 40)
    distortion = numpy.asarray(quantizer.distortion(x))
    expected = ((numpy.asarray(decoded) - numpy.asarray(x)) ** 2).sum(-1)
    assert distortion.shape == (3, 100) and numpy.allclose(distortion, expected)
    assert (distortion / numpy.asarray(output.norms) ** 2).mean() == pytest.approx(0.0095, rel=0.2)


@pytest.mark.parametrize("unbiased", [True, False])
def test_quantizer(small, make, unbiased):
    quantizer = TurboQuant(40, bit_width=3, unbiased=unbiased, seed=1)
    x = make(small)
    output = quantizer.quantize(x)
    assert (output.bit_width, output.dim, output.qjl_output) == (3, 40, None)
    products = quantizer.compute_inner_product(x[:5], output)
    assert type(products) is type(x) and tuple(products.shape) == (5, 300)
    one = quantizer.compute_inner_product(x[2], output)
    assert tuple(one.shape) == (300,) and (numpy.asarray(one) == numpy.asarray(products)[2]).all()
    slope = (numpy.asarray(products) * (small[:5] @ small.T)).sum() / ((small[:5] @ small.T) ** 2).sum()
    assert abs(slope - 1) < 0.02 if unbiased else 0.94 < slope < 0.99
    assert numpy.asarray(quantizer.dequantize(output)).shape == (300, 40)
    assert quantizer.compression_ratio() == pytest.approx(160 / 19)
    assert quantizer.memory_bytes(10) == 190
    assert quantizer.to("cpu") is quantizer


def test_quantizer_errors(small):
    with pytest.raises(ValueError, match="bit_width"):
        TurboQuant(40, bit_width=1)
    assert TurboQuant(40, bit_width=1, unbiased=False).bit_width == 1
    with pytest.raises(ValueError, match=r"\(\.\.\., 40\)"):
        TurboQuant(40).quantize(small[:, :39])


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_index(base, queries, make, metric):
    index = TurboQuantIndex(384, bit_width=4, metric=metric)
    with pytest.raises(RuntimeError, match="empty"):
        index.search(make(queries))
    index.add(make(base[:3000]))
    index.add(make(base[3000:]))
    assert index.n_vectors == 5000 and index.memory_bytes() == 5000 * 196
    scores, indices = index.search(make(queries), k=3)
    assert type(scores) is type(indices) is type(make(queries))
    assert tuple(scores.shape) == tuple(indices.shape) == (200, 3)
    assert (numpy.asarray(indices)[:, 0] == numpy.arange(200)).mean() > 0.9
    one_scores, one_indices = index.search(make(queries[7]))
    assert tuple(one_indices.shape) == (10,) and float(one_scores[0]) == float(scores[7, 0])
    with pytest.raises(ValueError, match="metric"):
        TurboQuantIndex(384, metric="l2")


def test_index_returns_no_more_than_it_has(small):
    index = TurboQuantIndex(40)
    index.add(small[:4])
    assert index.search(small, k=10)[1].shape == (300, 4)
