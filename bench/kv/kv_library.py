"""The C API of the KV cache (include/turboquant/kvcache.h) through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_size_t, c_uint32, c_uint64, c_void_p

import numpy as np

RAW_BITS = 16


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
        if getattr(self._lib, name)(*args) != 0:
            raise RuntimeError(f"{name}: {self._lib.tq_kv_last_error().decode()}")

    def destroy(self, cache: c_void_p) -> None:
        self._lib.tq_kv_destroy(cache)


class Cache:
    """A cache of one sequence. Options are fields of Config and, for both sides, of Side."""

    def __init__(self, library: Library, keys: dict, values: dict, **options: int):
        self._library = library
        config = Config()
        library.call("tq_kv_config_init", byref(config))
        for name, value in options.items():
            setattr(config, name, value)
        for side, chosen in ((config.layer.keys, keys), (config.layer.values, values)):
            for name, value in chosen.items():
                setattr(side, name, value)
        self.config = config
        self._cache = c_void_p()
        library.call("tq_kv_create", byref(config), byref(self._cache))
        self._sequence = c_uint32()
        library.call("tq_kv_sequence_create", self._cache, byref(self._sequence))

    def close(self) -> None:
        self._library.destroy(self._cache)
        self._cache = c_void_p()

    def append(self, layer: int, position: int, keys: np.ndarray, values: np.ndarray) -> None:
        """keys [n][kv_heads][key_dim], values [n][kv_heads][value_dim], float32."""
        keys = np.ascontiguousarray(keys, np.float32)
        values = np.ascontiguousarray(values, np.float32)
        self._library.call("tq_kv_append", self._cache, c_uint32(layer), self._sequence,
                           c_size_t(position), c_size_t(len(keys)),
                           keys.ctypes.data_as(c_void_p), values.ctypes.data_as(c_void_p))

    def attend(self, layer: int, q: np.ndarray) -> np.ndarray:
        """q [queries][query_heads][key_dim] of the last tokens; their outputs."""
        q = np.ascontiguousarray(q, np.float32)
        out = np.empty((*q.shape[:2], self.config.value_dim), np.float32)
        attention = Attention()
        self._library.call("tq_kv_attention_init", byref(attention))
        queries = c_uint32(len(q))
        attention.layer = layer
        attention.sequences = 1
        attention.sequence = ctypes.pointer(self._sequence)
        attention.queries = ctypes.pointer(queries)
        attention.q = q.ctypes.data
        attention.out = out.ctypes.data
        self._library.call("tq_kv_attend", self._cache, byref(attention))
        return out

    def memory(self) -> Memory:
        memory = Memory()
        self._library.call("tq_kv_get_memory", self._cache, byref(memory))
        return memory
