"""The names and signatures of the PyTorch reference implementation (turboquant-torch 0.4.0).

numpy arrays in give numpy arrays out; torch tensors in give torch tensors out, on their device.
Leading dimensions are kept: quantize takes (..., dim). What differs from the reference:

* the output's codes are this engine's packed bytes, (..., code_size) uint8, with the scale of each
  vector inside; treat them as opaque;
* `unbiased=True` uses this engine's unbiased estimator, whose variance is several times smaller at
  equal bits than that of the reference's two stages; bit_width ends at 4;
* compression_ratio and memory_bytes count every stored byte;
* TurboQuantIndex.add appends; the reference replaces what was there.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy

from ._core import IndexTurboQuant, Quantizer


class TurboQuantOutput(NamedTuple):
    """What TurboQuant.quantize returns."""

    mse_codes: Any  #: uint8 (..., code_size): packed codes and factors
    mse_norms: Any  #: float32 (...): lengths of the vectors
    qjl_output: Any  #: None: the codes hold everything
    bit_width: int
    dim: int


class MSEQuantizedOutput(NamedTuple):
    """What TurboQuantMSE.quantize returns."""

    codes: Any  #: uint8 (..., code_size): packed codes and factors
    norms: Any  #: float32 (...): lengths of the vectors
    bit_width: int


def _is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _to_numpy(x: Any, dtype: Any = None) -> numpy.ndarray:
    if _is_torch(x):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    return numpy.asarray(x, dtype)


def _like(result: numpy.ndarray, example: Any) -> Any:
    """The result as the kind of array that the example is."""
    if _is_torch(example):
        return sys.modules["torch"].from_numpy(result).to(example.device)
    return result


def _rows(x: Any, width: int) -> tuple[numpy.ndarray, tuple[int, ...]]:
    array = _to_numpy(x)
    if array.ndim < 1 or array.shape[-1] != width:
        raise ValueError(f"expected the shape (..., {width}), got {tuple(array.shape)}")
    return array.reshape(-1, width), array.shape[:-1]


class _Base:
    def __init__(self, dim: int, bit_width: int, estimator: str, seed: int):
        self.dim = dim
        self.bit_width = bit_width
        self.seed = seed
        self._quantizer = Quantizer(dim, bits=bit_width, estimator=estimator, seed=seed)

    def to(self, device: Any) -> Any:
        """Returns self: codes are made on the CPU, results go to the device of their input."""
        return self

    def _quantize(self, x: Any) -> tuple[Any, Any]:
        rows, shape = _rows(x, self.dim)
        codes = self._quantizer.quantize(rows).reshape(*shape, -1)
        norms = numpy.linalg.norm(rows.astype(numpy.float32), axis=-1).reshape(shape)
        return _like(codes, x), _like(norms, x)

    def _dequantize(self, codes: Any) -> Any:
        rows, shape = _rows(codes, self._quantizer.code_size)
        return _like(self._quantizer.dequantize(rows).reshape(*shape, self.dim), codes)

    def compression_ratio(self) -> float:
        """Bytes of float32 vectors over the bytes stored."""
        return self._quantizer.compression_ratio()

    def memory_bytes(self, n_vectors: int) -> int:
        """Bytes stored for n_vectors."""
        return n_vectors * self._quantizer.code_size


class TurboQuantMSE(_Base):
    """The quantizer with the smallest reconstruction error (Algorithm 1), bit_width 1 to 4."""

    def __init__(self, dim: int, bit_width: int = 2, seed: int = 0):
        super().__init__(dim, bit_width, "mse", seed)

    def quantize(self, x: Any) -> MSEQuantizedOutput:
        """x: (..., dim)."""
        codes, norms = self._quantize(x)
        return MSEQuantizedOutput(codes=codes, norms=norms, bit_width=self.bit_width)

    def dequantize(self, output: MSEQuantizedOutput) -> Any:
        """(..., dim), float32."""
        return self._dequantize(output.codes)

    def get_residual(self, x: Any) -> Any:
        """x - dequantize(quantize(x))."""
        decoded = _to_numpy(self.dequantize(self.quantize(x)))
        return _like(_to_numpy(x, numpy.float32) - decoded, x)

    def distortion(self, x: Any) -> Any:
        """Squared reconstruction error of each vector, shape (...)."""
        return _like((_to_numpy(self.get_residual(x)) ** 2).sum(axis=-1), x)


class TurboQuant(_Base):
    """The quantizer whose inner products are unbiased, or (unbiased=False) TurboQuantMSE's.

    bit_width: 2 to 4 bits per coordinate, from 1 with unbiased=False.
    """

    def __init__(self, dim: int, bit_width: int = 3, unbiased: bool = True, seed: int = 0):
        if unbiased and bit_width < 2:
            raise ValueError("unbiased=True needs a bit_width of 2 or more")
        super().__init__(dim, bit_width, "tq" if unbiased else "mse", seed)
        self.unbiased = unbiased

    def quantize(self, x: Any) -> TurboQuantOutput:
        """x: (..., dim)."""
        codes, norms = self._quantize(x)
        return TurboQuantOutput(codes, norms, None, self.bit_width, self.dim)

    def dequantize(self, output: TurboQuantOutput) -> Any:
        """(..., dim), float32."""
        return self._dequantize(output.mse_codes)

    def compute_inner_product(self, query: Any, output: TurboQuantOutput) -> Any:
        """Estimates (n_queries, n) for queries (n_queries, dim), or (n,) for one query (dim,)."""
        codes, _ = _rows(output.mse_codes, self._quantizer.code_size)
        return _like(self._quantizer.inner_products(_to_numpy(query), codes), query)


class TurboQuantIndex:
    """Search by inner product ("ip") or cosine ("cosine") over compressed vectors."""

    def __init__(self, dim: int, bit_width: int = 3, metric: str = "ip", seed: int = 0):
        if metric not in ("ip", "cosine"):
            raise ValueError(f'metric must be "ip" or "cosine", not {metric!r}')
        self.dim = dim
        self.bit_width = bit_width
        self.metric = metric
        self._index = IndexTurboQuant(dim, bits=bit_width, metric=metric, seed=seed)

    def to(self, device: Any) -> TurboQuantIndex:
        """Returns self: the search runs on the CPU, results go to the device of the query."""
        return self

    def add(self, vectors: Any) -> None:
        """vectors: (n, dim)."""
        array = _to_numpy(vectors)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise ValueError(f"expected the shape (n, {self.dim}), got {tuple(array.shape)}")
        self._index.add(array)

    def search(self, query: Any, k: int = 10) -> tuple[Any, Any]:
        """Scores and indices, (n_queries, k) each, or (k,) for one query (dim,); k at most
        n_vectors."""
        if len(self._index) == 0:
            raise RuntimeError("the index is empty: call add() first")
        scores, ids = self._index.search(_to_numpy(query), min(k, len(self._index)))
        return _like(scores, query), _like(ids, query)

    @property
    def n_vectors(self) -> int:
        return len(self._index)

    def memory_bytes(self) -> int:
        return len(self._index) * self._index.code_size
