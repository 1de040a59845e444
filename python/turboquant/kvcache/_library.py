"""The C API of the KV cache (include/turboquant/kvcache.h) through ctypes. Needs numpy alone."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_size_t, c_uint32, c_uint64, c_void_p

import numpy as np

RAW_BITS = 16
ERRORS = {1: ValueError, 2: IndexError, 3: MemoryError}  # tq_kv_status


class Side(ctypes.Structure):
    _fields_ = [("bits", c_uint32), ("outliers", c_uint32), ("centre", c_uint32)]


class Layer(ctypes.Structure):
    _fields_ = [("keys", Side), ("values", Side)]


class Config(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("layers", c_uint32),
        ("query_heads", c_uint32),
        ("kv_heads", c_uint32),
        ("key_dim", c_uint32),
        ("value_dim", c_uint32),
        ("max_sequences", c_uint32),
        ("page_tokens", c_uint32),
        ("sink_tokens", c_uint32),
        ("tail_tokens", c_uint32),
        ("seed", c_uint64),
        ("layer", Layer),
        ("per_layer", POINTER(Layer)),
    ]


class Attention(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("layer", c_uint32),
        ("sequences", c_uint32),
        ("sequence", POINTER(c_uint32)),
        ("queries", POINTER(c_uint32)),
        ("q", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("scale", c_float),
        ("causal", c_uint32),
        ("window", c_uint32),
        ("softcap", c_float),
        ("mask", c_void_p),
        ("mask_stride", c_size_t),
        ("sinks", c_void_p),
        ("threads", c_uint32),
    ]


class Memory(ctypes.Structure):
    _fields_ = [("allocated", c_size_t), ("half", c_size_t)]


class Library:
    """libturboquant_kv.so; every call that fails raises with the library's sentence."""

    def __init__(self, path: str):
        self._lib = ctypes.CDLL(path)
        self._lib.tq_kv_last_error.restype = c_char_p
        self._lib.tq_kv_destroy.argtypes = [c_void_p]
        self._lib.tq_kv_destroy.restype = None

    def call(self, name: str, *args) -> None:
        status = getattr(self._lib, name)(*args)
        if status != 0:
            kind = ERRORS.get(status, RuntimeError)
            raise kind(self._lib.tq_kv_last_error().decode())

    def destroy(self, cache: c_void_p) -> None:
        self._lib.tq_kv_destroy(cache)


def side(bits: int, outliers: int = 0, centre: bool = False) -> dict:
    """Options of keys or values; raw sides have neither outliers nor a mean."""
    coded = bits != RAW_BITS
    return {"bits": bits, "outliers": outliers if coded else 0, "centre": int(centre and coded)}


def bit_pair(bits: int | Sequence[int]) -> tuple[int, int]:
    """(key bits, value bits) from a number for both, or from a pair."""
    return (bits, bits) if isinstance(bits, (int, np.integer)) else tuple(bits)


def sides(pairs: Sequence[tuple[int, int]], outliers: int = 0) -> list[tuple[dict, dict]]:
    """Options of keys, centred, and of values for layers of (key bits, value bits).

    Outlier channels take one bit more: a side of 4 bits has none, since it has no fifth.
    """
    if outliers and all(bits >= 4 for pair in pairs for bits in pair):
        raise ValueError("outlier channels take one bit more, so bits must be 1 to 3 with them")
    numbers = [[outliers if bits < 4 else 0 for bits in pair] for pair in pairs]
    return [(side(k, n, True), side(v, m)) for (k, v), (n, m) in zip(pairs, numbers)]


class Cache:
    """A cache of `sequences` sequences, numbered from 0.

    keys and values are fields of Side, options those of Config.
    """

    def __init__(
        self, library: Library, keys: dict, values: dict, sequences: int = 1, **options: int
    ):
        self._library = library
        self._cache = c_void_p()
        config = Config()
        library.call("tq_kv_config_init", byref(config))
        config.max_sequences = sequences
        for name, value in options.items():
            setattr(config, name, value)
        for chosen_side, chosen in ((config.layer.keys, keys), (config.layer.values, values)):
            for name, value in chosen.items():
                setattr(chosen_side, name, value)
        self.config = config
        library.call("tq_kv_create", byref(config), byref(self._cache))
        for _ in range(sequences):
            library.call("tq_kv_sequence_create", self._cache, byref(c_uint32()))

    def close(self) -> None:
        self._library.destroy(self._cache)
        self._cache = c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_cache", None):
            self.close()

    def length(self, layer: int = 0, sequence: int = 0) -> int:
        tokens = c_size_t()
        self._library.call(
            "tq_kv_sequence_length", self._cache, c_uint32(layer), c_uint32(sequence), byref(tokens)
        )
        return tokens.value

    def append(
        self, layer: int, position: int, keys: np.ndarray, values: np.ndarray, sequence: int = 0
    ) -> None:
        """keys [n][kv_heads][key_dim], values [n][kv_heads][value_dim], float32."""
        keys = np.ascontiguousarray(keys, np.float32)
        values = np.ascontiguousarray(values, np.float32)
        heads, key_dim = self.config.kv_heads, self.config.key_dim
        if keys.shape[1:] != (heads, key_dim):
            raise ValueError(f"keys must be (n, {heads}, {key_dim}), not {keys.shape}")
        if values.shape != (len(keys), heads, self.config.value_dim):
            raise ValueError(
                f"values must be ({len(keys)}, {heads}, {self.config.value_dim}), "
                f"not {values.shape}"
            )
        self._library.call(
            "tq_kv_append",
            self._cache,
            c_uint32(layer),
            c_uint32(sequence),
            c_size_t(position),
            c_size_t(len(keys)),
            keys.ctypes.data_as(c_void_p),
            values.ctypes.data_as(c_void_p),
        )

    def create_sequence(self) -> int:
        number = c_uint32()
        self._library.call("tq_kv_sequence_create", self._cache, byref(number))
        return number.value

    def copy_sequence(self, sequence: int) -> int:
        """A sequence that shares its pages with the original."""
        number = c_uint32()
        self._library.call("tq_kv_sequence_copy", self._cache, c_uint32(sequence), byref(number))
        return number.value

    def truncate_sequence(self, sequence: int, tokens: int) -> None:
        self._library.call(
            "tq_kv_sequence_truncate", self._cache, c_uint32(sequence), c_size_t(tokens)
        )

    def free_sequence(self, sequence: int) -> None:
        self._library.call("tq_kv_sequence_free", self._cache, c_uint32(sequence))

    def attend(
        self, layer: int, q: np.ndarray, sequence: int = 0, scale: float = 0, causal: bool = True
    ) -> np.ndarray:
        """q [queries][query_heads][key_dim] of the last tokens; their outputs."""
        return self.attend_batch(layer, q, [sequence], scale=scale, causal=causal)

    def attend_batch(
        self,
        layer: int,
        q: np.ndarray,
        sequences: Sequence[int],
        *,
        scale: float = 0,
        causal: bool = True,
        window: int = 0,
        softcap: float = 0,
        mask: np.ndarray | None = None,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        """q [sequences x queries][query_heads][key_dim], equally many queries for each sequence;
        mask [sequences x queries][tokens] is added to scores, sinks [query_heads]. Their outputs.
        """
        q = np.ascontiguousarray(q, np.float32)
        config = self.config
        if q.shape[1:] != (config.query_heads, config.key_dim):
            raise ValueError(
                f"q must be (queries, {config.query_heads}, {config.key_dim}), not {q.shape}"
            )
        n = len(sequences)
        if n == 0 or len(q) % n != 0:
            raise ValueError(f"{len(q)} queries are not the same number for {n} sequences")
        out = np.empty((*q.shape[:2], config.value_dim), np.float32)
        attention = Attention()
        self._library.call("tq_kv_attention_init", byref(attention))
        attention.layer = layer
        attention.sequences = n
        attention.sequence = (c_uint32 * n)(*sequences)
        attention.queries = (c_uint32 * n)(*[len(q) // n] * n)
        attention.q = q.ctypes.data
        attention.out = out.ctypes.data
        attention.scale = scale
        attention.causal = int(causal)
        attention.window = window
        attention.softcap = softcap
        if mask is not None:
            mask = np.ascontiguousarray(mask, np.float32)
            if mask.ndim != 2 or len(mask) != len(q):
                raise ValueError(f"the mask must be ({len(q)}, tokens), not {mask.shape}")
            attention.mask = mask.ctypes.data
            attention.mask_stride = mask.shape[1]
        if sinks is not None:
            sinks = np.ascontiguousarray(sinks, np.float32)
            if sinks.shape != (config.query_heads,):
                raise ValueError(f"sinks must be ({config.query_heads},), not {sinks.shape}")
            attention.sinks = sinks.ctypes.data
        self._library.call("tq_kv_attend", self._cache, byref(attention))
        return out

    def dequantize(self, layer: int = 0, sequence: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """keys [n][kv_heads][key_dim], values [n][kv_heads][value_dim] as attention sees them."""
        n, c = self.length(layer, sequence), self.config
        keys = np.empty((n, c.kv_heads, c.key_dim), np.float32)
        values = np.empty((n, c.kv_heads, c.value_dim), np.float32)
        self._library.call(
            "tq_kv_dequantize",
            self._cache,
            c_uint32(layer),
            c_uint32(sequence),
            keys.ctypes.data_as(c_void_p),
            values.ctypes.data_as(c_void_p),
        )
        return keys, values

    def memory(self) -> Memory:
        memory = Memory()
        self._library.call("tq_kv_get_memory", self._cache, byref(memory))
        return memory


@functools.lru_cache(maxsize=1)
def library() -> Library:
    """The library that TURBOQUANT_KV_LIBRARY names, else the package's, else the system's."""
    named = os.environ.get("TURBOQUANT_KV_LIBRARY")
    if named:
        return Library(named)
    package = pathlib.Path(__file__).resolve().parent.parent
    for path in sorted(package.glob("libturboquant_kv.so*")):
        return Library(str(path))
    return Library("libturboquant_kv.so.0")
