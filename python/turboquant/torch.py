"""The KV cache in the memory of a CUDA device, with torch tensors. Needs torch.

    geometry = dict(layers=32, query_heads=32, kv_heads=8, key_dim=128, value_dim=128)
    sides = side(4, centre=True), side(4)
    cache = DeviceCache(library(), *sides, sequences=8, sequence_tokens=32768, **geometry)
    cache.append_batch(layer, keys, values, sequences)     # on torch's current stream
    out = cache.attend_batch(layer, q, sequences)

Calls go to libturboquant_kv by data_ptr(), in half, bfloat16 or single precision, and can be
captured with torch.cuda.graph (see reserve and refresh). The library must have been built with
CUDA; TURBOQUANT_KV_LIBRARY names one. docs/kv_cuda.md says what a device can hold.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

import torch

from .kvcache._library import Attention, Cache, Config, Library, library, side

_ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _DeviceConfig(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_int32),
        ("sequence_tokens", c_uint64),
        ("pool_tokens", c_uint64),
    ]


class _DeviceCall(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("stream", c_void_p), ("element", c_uint32)]


def _numbers(values: Sequence[int]) -> ctypes.Array:
    return (c_uint32 * len(values))(*values)


class DeviceCache(Cache):
    """A cache of `sequences` sequences of at most sequence_tokens tokens, on one device.

    keys and values are fields of Side, options those of Config. max_sequences, if larger, leaves
    room for copies. pool_tokens: room for tokens in pages, of all sequences; 0: all they may have.
    """

    def __init__(
        self,
        library: Library,
        keys: dict,
        values: dict,
        sequences: int = 1,
        *,
        sequence_tokens: int,
        pool_tokens: int = 0,
        device: int | torch.device = 0,
        **options: int,
    ):
        self._library = library
        self._cache = c_void_p()
        index = device if isinstance(device, int) else device.index
        self.device = torch.device("cuda", index or 0)
        config, on_device = Config(), _DeviceConfig()
        library.call("tq_kv_config_init", byref(config))
        library.call("tq_kv_device_config_init", byref(on_device))
        config.max_sequences = sequences
        for name, value in options.items():
            setattr(config, name, value)
        for chosen_side, chosen in ((config.layer.keys, keys), (config.layer.values, values)):
            for name, value in chosen.items():
                setattr(chosen_side, name, value)
        on_device.device = self.device.index
        on_device.sequence_tokens = sequence_tokens
        on_device.pool_tokens = pool_tokens
        self.config = config
        library.call("tq_kv_create_on_device", byref(config), byref(on_device), byref(self._cache))
        for _ in range(sequences):
            library.call("tq_kv_sequence_create", self._cache, byref(c_uint32()))

    def _call(self, tensor: torch.Tensor) -> _DeviceCall:
        call = _DeviceCall()
        self._library.call("tq_kv_device_call_init", byref(call))
        call.stream = torch.cuda.current_stream(self.device).cuda_stream
        call.element = _ELEMENTS[tensor.dtype]
        return call

    def _check(self, tensor: torch.Tensor, shape: tuple, name: str) -> torch.Tensor:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, not {tuple(tensor.shape)}")
        if tensor.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, not {tensor.device}")
        if tensor.dtype not in _ELEMENTS:
            raise ValueError(f"{name} must be float32, float16 or bfloat16, not {tensor.dtype}")
        return tensor.contiguous()

    def append_batch(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, sequences: Sequence[int]
    ) -> None:
        """keys [sequences][n][kv_heads][key_dim], values likewise, behind what there is."""
        c, n = self.config, keys.shape[1]
        keys = self._check(keys, (len(sequences), n, c.kv_heads, c.key_dim), "keys")
        values = self._check(values, (len(sequences), n, c.kv_heads, c.value_dim), "values")
        if keys.dtype != values.dtype:
            raise ValueError(f"keys are {keys.dtype} and values {values.dtype}")
        self._library.call(
            "tq_kv_append_on_device",
            self._cache,
            c_uint32(layer),
            c_uint32(len(sequences)),
            _numbers(sequences),
            c_size_t(n),
            c_void_p(keys.data_ptr()),
            c_void_p(values.data_ptr()),
            byref(self._call(keys)),
        )

    def append(
        self,
        layer: int,
        position: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        sequence: int = 0,
    ) -> None:
        if position != self.length(layer, sequence):
            raise ValueError(f"the next position is {self.length(layer, sequence)}, not {position}")
        self.append_batch(layer, keys[None], values[None], [sequence])

    def attend_batch(
        self,
        layer: int,
        q: torch.Tensor,
        sequences: Sequence[int],
        *,
        scale: float = 0,
        causal: bool = True,
        window: int = 0,
        softcap: float = 0,
        mask: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q [sequences x queries][query_heads][key_dim] of their last tokens; their outputs.

        mask float32 [sequences x queries][tokens], sinks float32 [query_heads]; lse, float32
        [sequences x queries][query_heads], is written to.
        """
        c, n = self.config, len(sequences)
        if n == 0 or q.shape[0] % n != 0:
            raise ValueError(f"{q.shape[0]} queries are not the same number for {n} sequences")
        q = self._check(q, (q.shape[0], c.query_heads, c.key_dim), "q")
        out = torch.empty((*q.shape[:2], c.value_dim), dtype=q.dtype, device=q.device)
        attention = Attention()
        self._library.call("tq_kv_attention_init", byref(attention))
        attention.layer = layer
        attention.sequences = n
        attention.sequence = _numbers(sequences)
        attention.queries = _numbers([q.shape[0] // n] * n)
        attention.q, attention.out = q.data_ptr(), out.data_ptr()
        attention.scale, attention.causal = scale, int(causal)
        attention.window, attention.softcap = window, softcap
        if mask is not None:
            mask = self._check(mask.float(), (q.shape[0], mask.shape[1]), "mask")
            attention.mask, attention.mask_stride = mask.data_ptr(), mask.shape[1]
        if sinks is not None:
            sinks = self._check(sinks.float(), (c.query_heads,), "sinks")
            attention.sinks = sinks.data_ptr()
        if lse is not None:
            if lse.dtype != torch.float32 or not lse.is_contiguous():
                raise ValueError("lse must be float32 and contiguous")
            attention.lse = self._check(lse, (q.shape[0], c.query_heads), "lse").data_ptr()
        self._library.call(
            "tq_kv_attend_on_device", self._cache, byref(attention), byref(self._call(q))
        )
        return out

    def scores_batch(
        self, layer: int, q: torch.Tensor, sequences: Sequence[int], scores: torch.Tensor
    ) -> None:
        """Products of q [sequences][query_heads][key_dim] with the keys of all tokens.

        scores, half and contiguous, is written to: [sequences][query_heads][tokens], with room for
        the tokens of the longest sequence.
        """
        c, n = self.config, len(sequences)
        q = self._check(q, (n, c.query_heads, c.key_dim), "q")
        if scores.dtype != torch.float16 or not scores.is_contiguous():
            raise ValueError("scores must be float16 and contiguous")
        self._check(scores, (n, c.query_heads, scores.shape[-1]), "scores")
        attention = Attention()
        self._library.call("tq_kv_attention_init", byref(attention))
        attention.layer, attention.sequences = layer, n
        attention.sequence, attention.queries = _numbers(sequences), _numbers([1] * n)
        attention.q = q.data_ptr()
        self._library.call(
            "tq_kv_scores_on_device",
            self._cache,
            byref(attention),
            c_void_p(scores.data_ptr()),
            c_size_t(scores.shape[-1]),
            byref(self._call(q)),
        )

    def reserve(self, sequence: int, tokens: int) -> None:
        """Pages for so many tokens more, before graphs that append them are replayed."""
        self._library.call("tq_kv_reserve", self._cache, c_uint32(sequence), c_size_t(tokens))

    def refresh(self) -> None:
        """Waits, and learns what replayed graphs have appended."""
        self._library.call("tq_kv_refresh", self._cache)


__all__ = ["DeviceCache", "library", "side"]
