"""The quantizer without an index."""

from __future__ import annotations

import pickle

import numpy
import pytest

from turboquant import IndexTurboQuant, Quantizer


@pytest.mark.parametrize("estimator", ["tq", "t", "qjl", "qjlg", "mse"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_quantize_and_back(small, bits, estimator):
    quantizer = Quantizer(40, bits=bits, estimator=estimator)
    codes = quantizer.quantize(small)
    assert codes.dtype == numpy.uint8 and codes.shape == (300, quantizer.code_size)
    x = quantizer.dequantize(codes)
    assert x.dtype == numpy.float32 and x.shape == small.shape
    assert (quantizer.quantize(small[0]) == codes[0]).all()
    assert (quantizer.dequantize(codes[0]) == x[0]).all()
    products = quantizer.inner_products(small[:9], codes)
    assert products.shape == (9, 300)
    assert (quantizer.inner_products(small[3], codes) == products[3]).all()
    scale = numpy.linalg.norm(small[:9], axis=1)[:, None] * numpy.linalg.norm(small, axis=1)
    assert numpy.abs((products - small[:9] @ x.T) / scale).max() < 0.02  # queries are int8
    again = pickle.loads(pickle.dumps(quantizer))
    assert (again.quantize(small) == codes).all()


def test_sizes():
    quantizer = Quantizer(384, bits=3)
    assert quantizer.code_size == 148
    assert quantizer.compression_ratio() == pytest.approx(1536 / 148)
    assert Quantizer(384, bits=3, with_norm=True).code_size == 152
    assert (quantizer.d, quantizer.bits, quantizer.estimator) == (384, 3, "tq")


def test_codes_are_those_of_an_index(small):
    index = IndexTurboQuant(40, bits=2, metric="ip", seed=9)
    index.add(small)
    assert (index.codes == Quantizer(40, bits=2, seed=9).quantize(small)).all()


def test_errors():
    quantizer = Quantizer(40)
    with pytest.raises(ValueError, match="bits"):
        Quantizer(40, bits=0)
    with pytest.raises(ValueError, match=r"\(n, 19\)"):
        quantizer.dequantize(numpy.zeros((2, 5), numpy.uint8))
    with pytest.raises(TypeError, match="uint8"):
        quantizer.dequantize(numpy.zeros((2, 19), numpy.float32))
