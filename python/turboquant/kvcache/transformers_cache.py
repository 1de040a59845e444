"""The compressed cache inside transformers 5: needs torch and transformers.

    model = turboquant.wrap(model)                     # one line: generate() now keeps codes
    model.generate(**inputs, max_new_tokens=50)

    cache = TurboQuantCache(model.config, bit_width=4) # or with a cache of one's own
    set_attention(model)
    model.generate(**inputs, past_key_values=cache)

New keys and values go into libturboquant_kv and are not kept anywhere else. The model's attention
calls "turboquant", a function of transformers' AttentionInterface, which asks that library. Codes
are on the CPU, also for models on other devices, unless device_tokens is given: then those of CUDA
tensors stay on their device. Inference alone: there are no gradients.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache as BaseCache
from transformers.cache_utils import CacheLayerMixin, DynamicCache, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from ._library import Cache, library, side
from .cache import to_numpy
from .compat import AttentionLayer, Report, compatibility

NAME = "turboquant"  # of the attention and of its masks in transformers' tables

_READABLE = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda")
}
_READABLE |= {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.ndimension}


class CompressedStates(torch.Tensor):
    """Stands for a layer's keys or values between the cache and the attention.

    It has their shape and no numbers: whatever wants to compute with it is refused, so that a model
    which does not call the attention of this module can not go on with wrong numbers.
    """

    layer: TurboQuantLayer

    @classmethod
    def of(cls, layer: TurboQuantLayer, like: torch.Tensor, tokens: int) -> CompressedStates:
        nothing = torch.empty(1, dtype=like.dtype, device=like.device)
        shape = (*like.shape[:2], tokens, like.shape[3])
        states = torch.Tensor._make_subclass(cls, nothing.expand(shape))
        states.layer = layer
        return states

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func not in _READABLE:
            raise RuntimeError(  # operators make NotImplemented of a TypeError
                f"{getattr(func, '__name__', func)} was called on a compressed cache: this model's "
                "attention is not the one of turboquant.kvcache. Use wrap(model), or "
                "set_attention(model) with a cache of your own"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class TurboQuantLayer(CacheLayerMixin):
    """Keys and values of one layer for all sequences of a batch.

    per_head: each head of each sequence is a sequence of the library's, so that each can have a
    mask of its own (T5's bias by relative position).
    """

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(
        self,
        query_heads: int,
        keys: dict,
        values: dict,
        window: int = 0,
        per_head: bool = False,
        **options: int,
    ):
        # Not CacheLayerMixin's, which makes room for tensors.
        self._query_heads = query_heads
        self._sides = (keys, values)
        self._options = options
        self.window = window
        self.per_head = per_head
        self.is_sliding = window > 0
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False
        self._cache: Cache | None = None
        self._sequences: list[int] = []
        self._tokens = 0  # in the library
        self._before = 0  # tokens in front of those, which a sliding window has passed

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._kv_heads = key_states.shape[1]
        self._dims = key_states.shape[3], value_states.shape[3]
        self._batch = key_states.shape[0]
        rows = self._rows
        self._cache = Cache(
            library(),
            *self._sides,
            rows,
            layers=1,
            max_sequences=max(1024, 4 * rows),
            query_heads=1 if self.per_head else self._query_heads,
            kv_heads=1 if self.per_head else self._kv_heads,
            key_dim=self._dims[0],
            value_dim=self._dims[1],
            **self._options,
        )
        self._sequences = list(range(rows))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key_states, value_states (batch, kv heads, new tokens, head size), after RoPE. What is
        given back goes to the attention and holds no numbers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self._batch:
            raise ValueError(
                f"the cache holds {self._batch} sequences and {key_states.shape[0]} were given"
            )
        self._append(to_numpy(key_states), to_numpy(value_states))
        return tuple(CompressedStates.of(self, x, self._tokens) for x in (key_states, value_states))

    @property
    def _rows(self) -> int:
        return self._batch * (self._kv_heads if self.per_head else 1)

    def _append(self, k: np.ndarray, v: np.ndarray) -> None:
        if self.per_head:
            k, v = (x.reshape(-1, 1, *x.shape[2:]) for x in (k, v))
        done: list[int] = []
        try:
            for i, sequence in enumerate(self._sequences):
                self._cache.append(
                    0, self._tokens, k[i].transpose(1, 0, 2), v[i].transpose(1, 0, 2), sequence
                )
                done.append(sequence)
        except ValueError:
            for sequence in done:
                self._cache.truncate_sequence(sequence, self._tokens)
            raise
        self._tokens += k.shape[2]

    def attend(
        self,
        query: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
        causal: bool,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """query (batch, query heads, n, head size) of the last n tokens; the outputs (batch, n,
        query heads, value size). A mask says everything; without one, causal and the window do."""
        batch, heads, n, dim = query.shape
        q = to_numpy(query)
        if self.per_head:
            q = q.reshape(batch * heads * n, 1, dim)
        else:
            q = q.transpose(0, 2, 1, 3).reshape(batch * n, heads, dim)
        out = self._cache.attend_batch(
            0,
            q,
            self._sequences,
            scale=scale or 0,
            causal=causal and mask is None,
            window=self.window if causal and mask is None else 0,
            softcap=softcap,
            mask=None if mask is None else self._mask_rows(mask, n),
            sinks=None if sinks is None else to_numpy(sinks),
        )
        if self.per_head:
            out = out.reshape(batch, heads, n, -1).transpose(0, 2, 1, 3)
        else:
            out = out.reshape(batch, n, heads, -1)
        result = torch.from_numpy(np.ascontiguousarray(out))
        return result.to(device=query.device, dtype=query.dtype)

    def _mask_rows(self, mask: torch.Tensor, n: int) -> np.ndarray:
        """[rows x queries][tokens], added to scores, of a mask (batch or 1, heads or 1, n, m)."""
        if mask.shape[1] != 1 and not self.per_head:
            raise ValueError(
                "a mask that differs between heads is understood only where the model has a bias "
                "by relative position"
            )
        if mask.shape[3] < self._tokens or mask.shape[2] != n:
            raise ValueError(
                f"the mask is {tuple(mask.shape[2:])}, and {n} queries ask {self._tokens} tokens"
            )
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask.cpu(), float("-inf"))
        heads = self._kv_heads if self.per_head else 1
        mask = mask[..., : self._tokens].expand(self._batch, heads, n, self._tokens)
        return to_numpy(mask.reshape(-1, self._tokens))

    def _states(self, which: int) -> torch.Tensor | None:
        if self._tokens == 0:
            return None
        x = np.stack([self._cache.dequantize(0, s)[which] for s in self._sequences])
        x = x.reshape(self._batch, -1, self._tokens, x.shape[3]) if self.per_head else x
        x = x if self.per_head else x.transpose(0, 2, 1, 3)
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device, self.dtype)

    @property
    def keys(self) -> torch.Tensor | None:
        """What attention sees, (batch, kv heads, tokens, head size), made anew at each access."""
        return self._states(0)

    @property
    def values(self) -> torch.Tensor | None:
        return self._states(1)

    @property
    def batch_size(self) -> int:
        return self._batch if self.is_initialized else -1

    @property
    def nbytes(self) -> int:
        """What the tokens take now, as allocated."""
        return 0 if self._cache is None else self._cache.memory().allocated

    @property
    def nbytes_half(self) -> int:
        """What the same tokens take in half precision."""
        return 0 if self._cache is None else self._cache.memory().half

    def get_seq_length(self) -> int:
        return self._before + self._tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if isinstance(query_length, torch.Tensor):  # transformers before 5.10 gives positions
            query_length = query_length.shape[0]
        return self._tokens + query_length, self._before

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier versions

    def crop(self, tokens: int) -> None:
        """Negative: so many of the last tokens go; positive: so many of all stay."""
        keep = self.get_seq_length() + tokens if tokens <= 0 else tokens
        if not self.is_initialized or keep >= self.get_seq_length():
            return
        if keep < self._before:
            raise ValueError(
                f"the tokens before {self._before} left the sliding window before this cache was "
                f"made, so it can not go back to {keep}"
            )
        for sequence in self._sequences:
            self._cache.truncate_sequence(sequence, keep - self._before)
        self._tokens = keep - self._before

    def _select(self, indices: Sequence[int]) -> None:
        """Sequence i becomes a copy of what sequence indices[i] was; pages are shared."""
        if self._cache is None:
            return
        heads = self._kv_heads if self.per_head else 1
        rows = [i * heads + h for i in indices for h in range(heads)]
        kept = set(rows)
        for row in range(len(self._sequences)):
            if row not in kept:
                self._cache.free_sequence(self._sequences[row])
        used: set[int] = set()
        chosen = []
        for row in rows:
            sequence = self._sequences[row]
            chosen.append(self._cache.copy_sequence(sequence) if row in used else sequence)
            used.add(row)
        self._sequences = chosen
        self._batch = len(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._select([i for i in range(self._batch) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            self._select(torch.arange(self._batch)[indices.cpu()].tolist())

    def offload(self) -> None:
        """Codes are on the CPU already."""

    def prefetch(self) -> None:
        """See offload."""


class DeviceLayer(TurboQuantLayer):
    """The same with codes on the device of the first keys, if that is a CUDA device, for at most
    device_tokens tokens of each sequence."""

    def __init__(self, *args: Any, device_tokens: int, **options: Any):
        self._device_tokens = device_tokens
        super().__init__(*args, **options)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._on_device = key_states.is_cuda
        if not self._on_device:
            super().lazy_initialization(key_states, value_states)
            return
        from ..torch import DeviceCache

        self.dtype, self.device = key_states.dtype, key_states.device
        self._batch, self._kv_heads = key_states.shape[:2]
        self._dims = key_states.shape[3], value_states.shape[3]
        self._cache = DeviceCache(
            library(),
            *self._sides,
            self._batch,
            sequence_tokens=self._device_tokens,
            pool_tokens=self._batch * self._device_tokens,
            device=key_states.device,
            layers=1,
            max_sequences=max(16, 4 * self._batch),
            query_heads=self._query_heads,
            kv_heads=self._kv_heads,
            key_dim=self._dims[0],
            value_dim=self._dims[1],
            **self._options,
        )
        self._sequences = list(range(self._batch))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self._on_device or key_states.shape[0] != self._batch:
            return super().update(key_states, value_states, *args, **kwargs)
        self._cache.append_batch(
            0, key_states.transpose(1, 2), value_states.transpose(1, 2), self._sequences
        )
        self._tokens += key_states.shape[2]
        return tuple(CompressedStates.of(self, x, self._tokens) for x in (key_states, value_states))

    def attend(
        self,
        query: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
        causal: bool,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        if not self._on_device:
            return super().attend(query, mask, scale, causal, softcap, sinks)
        batch, heads, n, dim = query.shape
        out = self._cache.attend_batch(
            0,
            query.transpose(1, 2).reshape(batch * n, heads, dim),
            self._sequences,
            scale=scale or 0,
            causal=causal and mask is None,
            window=self.window if causal and mask is None else 0,
            softcap=softcap,
            mask=None
            if mask is None
            else torch.from_numpy(self._mask_rows(mask, n)).to(query.device),
            sinks=sinks,
        )
        return out.reshape(batch, n, heads, -1)


def _layer_bits(bits: Any, n: int) -> list[tuple[int, int]]:
    """(key bits, value bits) of n layers, from a number, a pair, or a list of either."""
    if isinstance(bits, (int, tuple)):
        bits = [bits] * n
    pairs = [(b, b) if isinstance(b, (int, np.integer)) else tuple(b) for b in bits]
    if len(pairs) != n:
        raise ValueError(f"bits are given for {len(pairs)} layers, and {n} are compressed")
    return pairs


def default_bits(head_dim: int) -> int:
    """3 bits for heads of 128 and more, 4 for smaller ones."""
    return 3 if head_dim >= 128 else 4


class TurboQuantCache(DynamicCache):
    """A cache of codes for a model: pass it as its cache, with set_attention(model) once.

    config: the model's. bit_width: a number for all layers, (keys, values), or a list of these for
    the compressed layers (AdaptiveKVCache.layer_bits); None: 3 for heads of 128 and more, else 4.
    The last residual_length tokens, and up to 63 more, and the first sink_tokens stay in half
    precision; n_outlier_channels per head get one bit more (1 to 3 bits). Layers without attention
    (report.left_alone) keep what transformers gives them. device_tokens: room for so many tokens of
    each sequence on the model's CUDA device (heads of 64, 128 or 256, 2 to 4 bits); 0: codes are on
    the CPU. Raises ValueError with the reason when nothing of the model can be compressed.
    """

    def __init__(
        self,
        config: Any,
        bit_width: Any = None,
        residual_length: int = 64,
        n_outlier_channels: int = 0,
        sink_tokens: int = 4,
        seed: int = 0,
        device_tokens: int = 0,
    ):
        super().__init__(config=config)
        self.report = compress_layers(
            self,
            config,
            bit_width,
            residual_length,
            n_outlier_channels,
            sink_tokens,
            seed,
            device_tokens,
        )

    @classmethod
    def from_model(cls, model: Any, **options: Any) -> TurboQuantCache:
        """For a model, whose attention is set to ours."""
        cache = cls(model.config, **options)
        set_attention(model)
        return cache

    @property
    def nbytes(self) -> int:
        """What the compressed layers take now, as allocated: codes, scales, means, raw tokens."""
        return nbytes(self)

    @property
    def nbytes_half(self) -> int:
        """What the same tokens take in half precision."""
        return sum(x.nbytes_half for x in self.layers if isinstance(x, TurboQuantLayer))


class TurboQuantDynamicCache(TurboQuantCache):
    """TurboQuantCache by turboquant-torch's name and defaults. model_info: the model's config."""

    def __init__(
        self,
        bit_width: Any = 3,
        residual_length: int = 0,
        n_outlier_channels: int = 0,
        model_info: Any = None,
        sink_tokens: int = 0,
        seed: int = 0,
    ):
        if model_info is None:
            raise ValueError(
                "the model's configuration is needed: TurboQuantDynamicCache.from_model(model), or "
                "model_info=model.config"
            )
        super().__init__(
            model_info, bit_width, residual_length, n_outlier_channels, sink_tokens, seed
        )

    @staticmethod
    def from_model(model: Any, **kwargs: Any) -> TurboQuantDynamicCache:
        kwargs.setdefault("bit_width", None)
        cache = TurboQuantDynamicCache(model_info=model.config, **kwargs)
        set_attention(model)
        return cache


def nbytes(cache: BaseCache) -> int:
    """Bytes of the compressed layers of any cache."""
    return sum(x.nbytes for x in cache.layers if isinstance(x, TurboQuantLayer))


def compress_layers(
    cache: DynamicCache,
    config: Any,
    bit_width: Any = None,
    residual_length: int = 64,
    n_outlier_channels: int = 0,
    sink_tokens: int = 4,
    seed: int = 0,
    device_tokens: int = 0,
) -> Report:
    """Puts layers of codes in the place of a cache's attention layers, with what those hold."""
    report = compatibility(config)
    layers = report.require()
    if bit_width is None:
        bit_width = default_bits(layers[0].key_dim)
    bits = _layer_bits(bit_width, len(layers))
    if n_outlier_channels and min(min(pair) for pair in bits) >= 4:
        raise ValueError("outlier channels take one bit more, so bits must be 1 to 3 with them")
    while len(cache.layers) <= max(x.index for x in layers):
        cache.layers.append(cache.layer_class_to_replicate())
    for layer, (key_bits, value_bits) in zip(layers, bits):
        old = cache.layers[layer.index]
        if not isinstance(old, CacheLayerMixin) or hasattr(old, "conv_states"):
            raise ValueError(
                f"layer {layer.index} keeps a {type(old).__name__} in transformers, which is more "
                "than keys and values"
            )
        new = _make_layer(
            layer,
            side(key_bits, n_outlier_channels if key_bits < 4 else 0, True),
            side(value_bits, n_outlier_channels if value_bits < 4 else 0),
            sink_tokens=sink_tokens,
            tail_tokens=residual_length,
            seed=seed,
            device_tokens=device_tokens,
        )
        if old.is_initialized and old.get_seq_length() > 0:
            new.update(old.keys, old.values)
            new._before = old.get_seq_length() - old.keys.shape[2]
        cache.layers[layer.index] = new
    return report


def _make_layer(
    layer: AttentionLayer, keys: dict, values: dict, device_tokens: int = 0, **options: int
) -> TurboQuantLayer:
    heads, per_head = layer.query_heads, layer.bias_per_head
    geometry = {"query_heads": heads, "kv_heads": layer.kv_heads}
    geometry |= {"key_dim": layer.key_dim, "value_dim": layer.value_dim}
    Cache(
        library(), keys, values, layers=1, **geometry, **options
    )  # wrong options are an error now
    if device_tokens > 0:
        if per_head:
            raise ValueError("a bias per head is understood on the CPU alone: no device_tokens")
        return DeviceLayer(
            heads, keys, values, layer.window, device_tokens=device_tokens, **options
        )
    return TurboQuantLayer(heads, keys, values, layer.window, per_head, **options)


def _is_sliding(mask_function: Callable, size: int | None) -> bool:
    """Whether it is causal within the last `size` tokens, by what it says at the borders."""
    if size is None:
        return False
    q = torch.tensor(size)
    said = [bool(mask_function(0, 0, q, torch.tensor(at))) for at in (0, 1, size, size + 1)]
    return said == [False, True, True, False]


def turboquant_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """None where "causal" and the layer's window say it all, else what sdpa takes."""
    plain = mask_function is causal_mask_function or _is_sliding(mask_function, local_size)
    if plain and allow_is_causal_skip:
        seen = None if attention_mask is None else attention_mask[:, kv_offset:]
        if seen is None or (seen.shape[1] >= kv_length and bool(seen[:, :kv_length].all())):
            return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        **kwargs,
    )


def turboquant_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function; keys that are no CompressedStates get exact attention."""
    if not isinstance(key, CompressedStates):
        return _exact(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    layer = key.layer
    if value.layer is not layer:
        raise ValueError("keys and values come from different layers")
    if dropout != 0 or (torch.is_grad_enabled() and query.requires_grad):
        raise ValueError(
            "attention on codes has no gradients and no dropout: use torch.no_grad() and eval()"
        )
    for name in ("head_mask", "cu_seq_lens_q", "cu_seq_lens_k"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention on codes does not know {name}")
    if kwargs.get("output_attentions"):
        raise ValueError("attention on codes does not keep its weights: output_attentions is False")
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    window = kwargs.get("sliding_window") or 0
    if causal and attention_mask is None and window != layer.window:
        raise ValueError(
            f"the model attends to {window or 'all'} tokens, and by its configuration it would be "
            f"{layer.window or 'all'}"
        )
    mask = _with_bias(kwargs.get("position_bias"), attention_mask, causal, query, layer._tokens)
    sinks = kwargs.get("s_aux")
    softcap = kwargs.get("softcap") or 0
    return layer.attend(query, mask, scaling, causal, softcap, sinks), None


def _with_bias(
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    causal: bool,
    query: torch.Tensor,
    tokens: int,
) -> torch.Tensor | None:
    if bias is None:
        return mask
    if mask is None and causal:
        n = query.shape[2]
        mask = torch.ones(n, tokens, dtype=torch.bool, device=bias.device).tril(tokens - n)[
            None, None
        ]
    bias = bias[..., :tokens]
    if mask is None:
        return bias
    mask = mask[..., :tokens]
    if mask.dtype == torch.bool:
        return bias.float().masked_fill(~mask, float("-inf"))
    return bias + mask


def _exact(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, Any]:
    """What transformers does by itself: encoders, cross attention, passes without a cache."""
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    n, m = query.shape[2], key.shape[2]
    window = kwargs.get("sliding_window") or 0
    options = {"batch_size": query.shape[0], "q_length": n, "kv_length": m, "device": query.device}
    if mask is None and causal and (n > 1 or window):
        options |= {"q_offset": m - n, "allow_is_causal_skip": False}
        if window:
            options["mask_function"] = sliding_window_causal_mask_function(window)
        mask = sdpa_mask(**options)
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward")
    if mask is not None and mask.dtype == torch.bool:
        least = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(
            ~mask, least
        )
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    return eager(module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)


AttentionInterface.register(NAME, turboquant_attention)
AttentionMaskInterface.register(NAME, turboquant_mask)


def set_attention(model: Any) -> None:
    """Makes a model attend with "turboquant": exactly as before unless its cache holds codes."""
    text = model.config.get_text_config(decoder=True)
    parts = getattr(model.config, "sub_configs", None) or {}
    named = [name for name in parts if getattr(model.config, name, None) is text]
    model.set_attn_implementation({named[0]: NAME} if named else NAME)
    decoder = text if named else model.config
    if decoder._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} computes attention by itself and not through transformers' "
            "AttentionInterface, so it can not attend to codes"
        )


def wrap(
    model: Any,
    bit_width: Any = None,
    residual_length: int = 64,
    n_outlier_channels: int = 0,
    verbose: bool = False,
    sink_tokens: int = 4,
    seed: int = 0,
) -> Any:
    """Makes a model keep codes instead of keys and values; gives the model back.

    Every call that uses a cache then has a compressed one: none given, one is made; an empty
    DynamicCache is made to hold codes; another kind of cache is refused. The options are those of
    TurboQuantCache. verbose: generate() says how much memory its cache took. unwrap(model) undoes
    it.
    """
    options = {
        "bit_width": bit_width,
        "residual_length": residual_length,
        "n_outlier_channels": n_outlier_channels,
        "sink_tokens": sink_tokens,
        "seed": seed,
    }
    TurboQuantCache(
        model.config, **options
    )  # refuses what can not be done, before anything changes
    unwrap(model)
    before = model.config._attn_implementation
    set_attention(model)
    _Wrapping(model, options, before, verbose)
    return model


def unwrap(model: Any) -> Any:
    """Undoes wrap(); caches that hold codes are then of no use to the model."""
    wrapping = getattr(model, "_turboquant", None)
    if wrapping is not None:
        wrapping.undo(model)
    return model


class _Wrapping:
    """What wrap() put around a model."""

    def __init__(self, model: Any, options: dict, before: str, verbose: bool):
        self.options = options
        self.before = before
        self.parameters = list(inspect.signature(model.forward).parameters)
        self.name = "cache" if "cache" in self.parameters else "past_key_values"
        self.hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        self.generating = False
        self.last: Any = None  # the cache that generate() uses, while it does
        if verbose:
            self._make_tell(model)
        model._turboquant = self

    def _make_tell(self, model: Any) -> None:
        generate = model.generate

        def generate_and_tell(*args: Any, **kwargs: Any) -> Any:
            self.generating = True
            try:
                result = generate(*args, **kwargs)
                print(_told(self.last))
                return result
            finally:
                self.generating, self.last = False, None

        model.generate = generate_and_tell

    def undo(self, model: Any) -> None:
        self.hook.remove()
        model.__dict__.pop("generate", None)
        model.set_attn_implementation(self.before)
        del model._turboquant

    def _before_forward(self, model: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        name = self.name
        place = self.parameters.index(name)
        cache = args[place] if place < len(args) else kwargs.get(name)
        if cache is None and "past_key_values" in kwargs:  # the name in earlier versions
            name, cache = "past_key_values", kwargs["past_key_values"]
        text = model.config.get_text_config(decoder=True)
        use = kwargs.get("use_cache")
        use = getattr(text, "use_cache", True) if use is None else use
        if cache is None and (not use or model.training):
            return args, kwargs
        if cache is None:
            cache = DynamicCache(config=text)
            if model.config.is_encoder_decoder:
                cache = EncoderDecoderCache(cache, DynamicCache())
            args, kwargs = args[:place], {**kwargs, name: cache}
        self._compress(cache, model.config)
        return args, kwargs

    def _compress(self, cache: Any, config: Any) -> None:
        if isinstance(cache, EncoderDecoderCache):
            cache = cache.self_attention_cache
        if self.generating:
            self.last = cache
        if any(isinstance(x, TurboQuantLayer) for x in cache.layers):
            return
        if type(cache) is not DynamicCache or cache.get_seq_length() > 0:
            raise ValueError(
                f"the model is wrapped, and a {type(cache).__name__} of "
                f"{cache.get_seq_length()} uncompressed tokens was given: give a TurboQuantCache, "
                "compress_model_kv(cache, model), or none"
            )
        compress_layers(cache, config, **self.options)


def _told(cache: Any) -> str:
    layers = [x for x in cache.layers if isinstance(x, TurboQuantLayer)] if cache else []
    ours, half = sum(x.nbytes for x in layers), sum(x.nbytes_half for x in layers)
    if not ours:
        return "no cache was used"
    return (
        f"{len(layers)} layers, {layers[0].get_seq_length()} tokens: {ours} bytes, "
        f"{half / ours:.2f} times fewer than in half precision"
    )


def compress_model_kv(
    past_key_values: Any,
    model: Any,
    *,
    bit_width: Any = 3,
    residual_length: int = 0,
    n_outlier_channels: int = 0,
    model_info: Any = None,
    sink_tokens: int = 0,
    seed: int = 0,
) -> BaseCache:
    """The tokens of a plain cache as codes: a cache for the model, whose attention is set to ours.

    The plain cache is left as it is; layers without attention are shared with it.
    """
    self_attention = past_key_values
    if isinstance(past_key_values, EncoderDecoderCache):
        self_attention = past_key_values.self_attention_cache
    if not isinstance(self_attention, DynamicCache):
        raise ValueError(f"a DynamicCache can be compressed, not a {type(self_attention).__name__}")
    config = model.config if model_info is None else model_info
    cache = TurboQuantCache.__new__(TurboQuantCache)
    BaseCache.__init__(cache, layers=list(self_attention.layers))
    cache.report = compress_layers(
        cache, config, bit_width, residual_length, n_outlier_channels, sink_tokens, seed
    )
    set_attention(model)
    if isinstance(past_key_values, EncoderDecoderCache):
        return EncoderDecoderCache(cache, past_key_values.cross_attention_cache)
    return cache
