"""Kinds of arrays: element types, layouts, other libraries."""

from __future__ import annotations

import numpy
import pytest

from turboquant import IndexTurboQuant


def codes_of(x) -> numpy.ndarray:
    index = IndexTurboQuant(40, bits=4)
    index.add(x)
    return index.codes


@pytest.mark.parametrize("dtype", [numpy.float16, numpy.float32, numpy.float64])
def test_element_types_equal_float32_of_the_same_values(small, dtype):
    x = small.astype(numpy.float16).astype(dtype)
    assert (codes_of(x) == codes_of(x.astype(numpy.float32))).all()


def test_every_float16_value():
    # Scaled so that codes tell values apart: the norms are stored as float32.
    bits = numpy.arange(1 << 16, dtype=numpy.uint16)
    values = bits.view(numpy.float16)
    values = values[numpy.isfinite(values)]
    values = values[: len(values) // 40 * 40].reshape(-1, 40)
    assert (codes_of(values) == codes_of(values.astype(numpy.float32))).all()


def test_layouts(small):
    expected = codes_of(small)
    wide = numpy.zeros((300, 100), numpy.float32)
    wide[:, 7:87:2] = small
    stored = small.tobytes()
    unaligned = numpy.frombuffer(b"x" + stored, numpy.uint8)[1:].view(numpy.float32)
    read_only = small.copy()
    read_only.flags.writeable = False
    for x in (
        numpy.asfortranarray(small),
        wide[:, 7:87:2],
        numpy.repeat(small, 2, axis=0)[::2],
        small[::-1][::-1],
        unaligned.reshape(300, 40),
        read_only,
        small.tolist(),
        memoryview(small),
    ):
        assert (codes_of(x) == expected).all()
    assert (codes_of(small[::-1]) == expected[::-1]).all()


def test_big_endian_is_refused_or_right(small):
    try:
        codes = codes_of(small.astype(">f4"))
    except TypeError as error:
        assert "byte order" in str(error)
    else:
        assert (codes == codes_of(small)).all()


def test_bfloat16_of_ml_dtypes(small):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x = small.astype(ml_dtypes.bfloat16)
    assert (codes_of(x) == codes_of(x.astype(numpy.float32))).all()


def test_torch(small):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.from_numpy(small)
    assert (codes_of(x) == codes_of(small)).all()
    assert (codes_of(x.clone().requires_grad_()) == codes_of(small)).all()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        y = x.to(dtype)
        assert (codes_of(y) == codes_of(y.float().numpy())).all()
    if torch.cuda.is_available():
        assert (codes_of(x.cuda()) == codes_of(small)).all()


class OnlyDlpack:
    """An array of another library: nothing but the protocol."""

    def __init__(self, array: numpy.ndarray):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_alone(small):
    assert (codes_of(OnlyDlpack(small)) == codes_of(small)).all()
