"""The flat index on a CUDA device.

    from turboquant.cuda import GpuIndexTurboQuant
    index = GpuIndexTurboQuant(1536, bits=4, metric="ip")      # or GpuIndexTurboQuant.from_cpu(cpu)
    index.add(vectors)                                         # numpy, torch, cupy, ...
    scores, ids = index.search(queries, 10)                    # on the device when the queries are

Codes, ids and score bits are those of IndexTurboQuant. Arrays of float32 that are on the index's
device, C-contiguous, are used where they lie: torch tensors, cupy arrays, everything that has
__cuda_array_interface__ or DLPack. Work goes to the stream that is current where the array comes
from (torch.cuda.current_stream(), cupy.cuda.get_current_stream()) unless `stream` names another; a
call returns when its result is there.

It needs a package that was built with CUDA:
    pip install . --config-settings=cmake.define.TURBOQUANT_BUILD_CUDA=ON
"""

from __future__ import annotations

import sys
from typing import Any

import numpy

from . import _core

_BUILD = (
    "this turboquant was built without CUDA; with nvcc of CUDA 11.8 or later on the PATH, build "
    "one by: pip install . --config-settings=cmake.define.TURBOQUANT_BUILD_CUDA=ON"
)


def device_count() -> int:
    """Number of CUDA devices; 0 where there is none, no driver, or no CUDA in this build."""
    return _core._gpu_device_count() if hasattr(_core, "_gpu_device_count") else 0


def is_available() -> bool:
    """Whether this build has CUDA and the machine a device."""
    return device_count() > 0


class _Array:
    """Vectors [n][d] of a caller: where they are, and whose."""

    def __init__(self, x: Any, d: int, device: int, what: str, stream: Any):
        self.kind, self.stream = "numpy", 0
        torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
        if torch is not None and isinstance(x, torch.Tensor):
            x = x.detach()
            if x.is_cuda:
                self.kind = "torch"
                self._on(device, x.device.index, what)
                self.array = x.to(torch.float32).contiguous()
                self.address, shape = self.array.data_ptr(), tuple(x.shape)
                self.stream = torch.cuda.current_stream(x.device).cuda_stream
            else:
                self._from_host(x.cpu().float().numpy())
                shape = self.array.shape
        elif cupy is not None and isinstance(x, cupy.ndarray):
            self.kind = "cupy"
            self._on(device, x.device.id, what)
            self.stream = cupy.cuda.get_current_stream().ptr
            with cupy.cuda.Device(device):
                self.array = cupy.ascontiguousarray(x, dtype=cupy.float32)
            self.address, shape = self.array.data.ptr, x.shape
        elif hasattr(x, "__cuda_array_interface__"):
            shape = self._from_interface(x, what)
        elif self._is_device_dlpack(x):
            seen = _core._gpu_view(x)
            if seen is None:
                raise TypeError(f"{what} on a device must be float32 and C-contiguous")
            self.array = x
            self.address, shape, on = seen
            self._on(device, on, what)
        else:
            self._from_host(x)
            shape = self.array.shape
        if len(shape) not in (1, 2) or shape[-1] != d:
            raise ValueError(f"{what} must have the shape (n, {d}) or ({d},), not {tuple(shape)}")
        self.single = len(shape) == 1
        self.rows = 1 if self.single else int(shape[0])
        if stream is not None:
            self.stream = _stream(stream)

    @staticmethod
    def _on(device: int, found: int | None, what: str) -> None:
        if found != device:
            raise ValueError(f"{what} are on device {found} and the index is on device {device}")

    @staticmethod
    def _is_device_dlpack(x: Any) -> bool:
        device = getattr(x, "__dlpack_device__", None)
        return device is not None and int(device()[0]) == 2  # kDLCUDA

    def _from_host(self, x: Any) -> None:
        try:
            self.array = numpy.ascontiguousarray(x, dtype=numpy.float32)
        except (TypeError, ValueError) as error:
            raise TypeError(f"these are no arrays of floats: {error}") from None
        self.address = self.array.ctypes.data
        if numpy.ndim(x) == 1:  # ascontiguousarray keeps it so; numpy.ndim takes lists too
            self.array = self.array.reshape(-1)

    def _from_interface(self, x: Any, what: str) -> tuple[int, ...]:
        of = x.__cuda_array_interface__
        shape, strides = tuple(of["shape"]), of.get("strides")
        packed, step = [], 4
        for size in reversed(shape):
            packed.insert(0, step)
            step *= size
        if of["typestr"] != "<f4" or (strides is not None and tuple(strides) != tuple(packed)):
            raise TypeError(f"{what} on a device must be float32 and C-contiguous")
        self.array, self.address = x, of["data"][0]
        stream = of.get("stream")
        self.stream = 0 if stream is None else int(stream)
        return shape

    def results(self, k: int, device: int) -> tuple[Any, Any, int, int]:
        """Scores and ids (n, k), and their addresses, where the queries are."""
        shape = (self.rows, k)
        if self.kind == "torch":
            torch = sys.modules["torch"]
            scores = torch.empty(shape, dtype=torch.float32, device=self.array.device)
            ids = torch.empty(shape, dtype=torch.int64, device=self.array.device)
            return scores, ids, scores.data_ptr(), ids.data_ptr()
        if self.kind == "cupy":
            cupy = sys.modules["cupy"]
            with cupy.cuda.Device(device):
                scores, ids = cupy.empty(shape, cupy.float32), cupy.empty(shape, cupy.int64)
            return scores, ids, scores.data.ptr, ids.data.ptr
        scores, ids = numpy.empty(shape, numpy.float32), numpy.empty(shape, numpy.int64)
        return scores, ids, scores.ctypes.data, ids.ctypes.data


def _stream(stream: Any) -> int:
    """A cudaStream_t: a number, or an object of torch (cuda_stream) or cupy (ptr)."""
    for name in ("cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    return int(stream)


class GpuIndexTurboQuant:
    """A flat index of TurboQuant codes in the memory of a CUDA device.

    d: 1 to 65,536. bits, metric, estimator, seed and centre as of IndexTurboQuant. device: the
    number of one. Any number of threads may call; calls take turns. ValueError for arguments,
    MemoryError where the device's memory does not suffice (what the index held is untouched),
    RuntimeError for a CUDA call that failed, with its name and the device.
    """

    def __init__(
        self,
        d: int,
        bits: int = 3,
        metric: str | int = "l2",
        estimator: str = "tq",
        seed: int = _core.DEFAULT_SEED,
        centre: bool = False,
        device: int = 0,
    ):
        self._index = self._native()(d, bits, metric, estimator, seed, centre, device)

    @staticmethod
    def _native() -> Any:
        if not hasattr(_core, "_GpuIndex"):
            raise RuntimeError(_BUILD)
        return _core._GpuIndex

    @classmethod
    def from_cpu(cls, index: _core.IndexTurboQuant, device: int = 0) -> GpuIndexTurboQuant:
        """A copy of an IndexTurboQuant on a device: the same codes, ids and answers."""
        native = cls._native()
        if not isinstance(index, _core.IndexTurboQuant):
            raise TypeError(f"only an IndexTurboQuant goes to a device, not {type(index).__name__}")
        made = cls.__new__(cls)
        made._index = native.from_cpu(index, device)
        return made

    def to_cpu(self) -> _core.IndexTurboQuant:
        """A copy as an IndexTurboQuant."""
        return self._index.to_cpu()

    def train(self, x: Any, *, stream: Any = None) -> None:
        """With centre: takes the mean of x (n, d). TurboQuant codes need no training."""
        rows = _Array(x, self.d, self.device, "training vectors", stream)
        self._index.train(rows.address, rows.rows, rows.stream)

    def add(self, x: Any, *, stream: Any = None) -> None:
        """Adds x (n, d); rows get the ids ntotal to ntotal + n - 1. A failed call adds nothing."""
        rows = _Array(x, self.d, self.device, "vectors", stream)
        self._index.add(rows.address, rows.rows, rows.stream)

    def search(
        self, queries: Any, k: int, *, selector: Any = None, stream: Any = None
    ) -> tuple[Any, Any]:
        """The k best of each query, k from 1 to 2,048: scores float32 and ids int64, both (nq, k),
        or (k,) for one query (d,).

        Best first; places that no vector fills have id -1. Results are torch tensors or cupy arrays
        on the device when the queries are, else numpy arrays. selector: an IDSelector, or ids or
        booleans to make one of.
        """
        asked = _Array(queries, self.d, self.device, "queries", stream)
        if not 1 <= k <= 2048:
            raise ValueError(f"k must be 1 to 2048 on a device, not {k}")
        scores, ids, to_scores, to_ids = asked.results(k, self.device)
        self._index.search(
            asked.address, asked.rows, k, to_scores, to_ids, selector, asked.stream
        )
        return (scores[0], ids[0]) if asked.single else (scores, ids)

    def remove_ids(self, ids: Any) -> int:
        """Removes what ids (an IDSelector, ids or booleans) name; vectors behind them move up."""
        return self._index.remove_ids(ids)

    def reset(self) -> None:
        """Removes all vectors."""
        self._index.reset()

    def reserve(self, n: int) -> None:
        """Makes room for n vectors in all."""
        self._index.reserve(n)

    def reconstruct(self, id: int) -> numpy.ndarray:
        """The decoded vector of an id, float32 (d,)."""
        return self._index.reconstruct(id)

    @property
    def codes(self) -> numpy.ndarray:
        """A copy of the codes, uint8 (ntotal, code_size), as IndexTurboQuant has them."""
        return self._index.codes()

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return len(self._index)

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return self._index.d

    @property
    def device(self) -> int:
        """Number of the device."""
        return self._index.device

    @property
    def metric(self) -> str:
        """What scores are: "ip", "l2" or "cosine"."""
        return self._index.metric

    @property
    def name(self) -> str:
        """The factory name, "TQ3"."""
        return self._index.name

    @property
    def code_size(self) -> int:
        """Bytes per vector in the codes; on the device a little more."""
        return self._index.code_size

    @property
    def device_bytes(self) -> int:
        """Bytes of the device that the vectors take, spare room included."""
        return self._index.device_bytes()

    def __len__(self) -> int:
        return self.ntotal

    def __repr__(self) -> str:
        return (
            f'GpuIndexTurboQuant(d={self.d}, "{self.name}", "{self.metric}", '
            f"ntotal={self.ntotal}, device={self.device})"
        )


__all__ = ["GpuIndexTurboQuant", "device_count", "is_available"]
