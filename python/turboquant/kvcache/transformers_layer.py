"""Layers of a transformers cache that hold codes; transformers_cache.py puts them there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import CacheLayerMixin

from ._library import Cache, library
from .cache import to_numpy

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
        geometry = self._geometry(key_states, value_states)
        rows = self._rows
        self._cache = Cache(
            library(), *self._sides, rows, max_sequences=max(1024, 4 * rows), **geometry
        )
        self._sequences = list(range(rows))
        self.is_initialized = True

    def _geometry(self, key_states: torch.Tensor, value_states: torch.Tensor) -> dict[str, int]:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._batch, self._kv_heads = key_states.shape[:2]
        return {
            "layers": 1,
            "query_heads": 1 if self.per_head else self._query_heads,
            "kv_heads": 1 if self.per_head else self._kv_heads,
            "key_dim": key_states.shape[3],
            "value_dim": value_states.shape[3],
            **self._options,
        }

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

        geometry = self._geometry(key_states, value_states)
        self._cache = DeviceCache(
            library(),
            *self._sides,
            self._batch,
            sequence_tokens=self._device_tokens,
            pool_tokens=self._batch * self._device_tokens,
            device=key_states.device,
            max_sequences=max(16, 4 * self._batch),
            **geometry,
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
