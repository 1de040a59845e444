"""TurboQuantKVCache: the keys and values of one layer, by the names of turboquant-torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._library import Cache, library, sides

MEBIBYTE = 1024 * 1024


def to_numpy(x: Any) -> np.ndarray:
    """float32 of a numpy array or a torch tensor on any device."""
    if hasattr(x, "detach"):
        x = x.detach().float().cpu().numpy()
    return np.asarray(x, np.float32)


def like(result: np.ndarray, model: Any) -> Any:
    """result as the kind of array that model is, of its type and on its device."""
    if not hasattr(model, "detach"):
        return result
    import torch

    return torch.from_numpy(result).to(device=model.device, dtype=model.dtype)


def gqa_key_bits(bit_width: int, num_kv_heads: int, num_query_heads: int) -> int:
    """Bits of keys that more than two query heads share: one more, up to 4; never fewer."""
    if num_kv_heads < 1 or num_query_heads % num_kv_heads != 0:
        raise ValueError(
            f"query heads ({num_query_heads}) must be a multiple of kv heads ({num_kv_heads})"
        )
    if num_query_heads // num_kv_heads <= 2:
        return bit_width
    return max(bit_width, min(bit_width + 1, 4))


class CompressedKV:
    """Tokens of one layer: codes of the older ones in pages of 64, the rest in half precision."""

    def __init__(self, cache: Cache, keys: Any, values: Any):
        self._cache = cache
        self._like_keys, self._like_values = keys[..., :0, :], values[..., :0, :]
        self.batch_size, self.num_heads, self.seq_len, self.head_dim = keys.shape
        self.seq_len = 0
        self.append(keys, values)

    def append(self, keys: Any, values: Any) -> None:
        """Adds tokens (batch, heads, tokens, head_dim) behind the others."""
        k, v = to_numpy(keys), to_numpy(values)
        wanted = (self.batch_size, self.num_heads, self.head_dim)
        for name, x in (("keys", k), ("values", v)):
            if x.ndim != 4 or (*x.shape[:2], x.shape[3]) != wanted or x.shape != k.shape:
                raise ValueError(
                    f"{name} must be (batch, heads, tokens, head_dim) with "
                    f"(batch, heads, head_dim) = {wanted}, not {x.shape}"
                )
        for b in range(self.batch_size):
            self._cache.append(0, self.seq_len, k[b].transpose(1, 0, 2), v[b].transpose(1, 0, 2), b)
        self.seq_len += k.shape[2]

    def decompress(self) -> tuple[Any, Any]:
        """Keys and values (batch, heads, tokens, head_dim) as attention sees them."""
        pairs = [self._cache.dequantize(0, b) for b in range(self.batch_size)]
        keys, values = (np.stack([p[i] for p in pairs]).transpose(0, 2, 1, 3) for i in (0, 1))
        return (
            like(np.ascontiguousarray(keys), self._like_keys),
            like(np.ascontiguousarray(values), self._like_values),
        )

    def attention(self, query: Any, scale: float | None = None) -> Any:
        """query (batch, query heads, n, head_dim); every query sees every token."""
        q = to_numpy(query)
        heads = self.num_heads
        if (
            q.ndim != 4
            or q.shape[0] != self.batch_size
            or q.shape[1] % heads != 0
            or q.shape[3] != self.head_dim
        ):
            raise ValueError(
                f"query must be ({self.batch_size}, a multiple of {heads}, n, "
                f"{self.head_dim}), not {q.shape}"
            )
        group, n = q.shape[1] // heads, q.shape[2]
        # Without a causal mask, the query heads of a kv head are as good as more queries.
        rows = q.reshape(self.batch_size, heads, group * n, self.head_dim).transpose(0, 2, 1, 3)
        out = np.empty_like(rows)
        for b in range(self.batch_size):
            for at in range(0, group * n, self.seq_len):
                end = at + self.seq_len
                out[b, at:end] = self._cache.attend(0, rows[b, at:end], b, scale or 0, causal=False)
        result = out.transpose(0, 2, 1, 3).reshape(q.shape)
        return like(np.ascontiguousarray(result), query)

    @property
    def nbytes(self) -> int:
        """What the tokens take now, as allocated: codes, scales, means, raw tokens."""
        return self._cache.memory().allocated


class TurboQuantKVCache:
    """Makes CompressedKV of one bit width.

    residual_length: so many of the last tokens, and up to 63 more, stay in half precision.
    n_outlier_channels: so many channels of each head get one bit more; chosen once, from the first
    page, for keys and for values apart. A side of 4 bits has none: it has no fifth bit.
    sink_tokens: so many of the first tokens stay in half precision.
    """

    def __init__(
        self,
        head_dim: int,
        bit_width: int = 3,
        residual_length: int = 128,
        key_bit_width: int | None = None,
        value_bit_width: int | None = None,
        pre_rope: bool = False,
        n_outlier_channels: int = 0,
        seed: int = 0,
        sink_tokens: int = 0,
    ):
        if pre_rope:
            raise ValueError("keys are compressed after RoPE; apply it first")
        self.head_dim = head_dim
        self.bit_width = bit_width
        self.key_bit_width = bit_width if key_bit_width is None else key_bit_width
        self.value_bit_width = bit_width if value_bit_width is None else value_bit_width
        self.residual_length = residual_length
        self.n_outlier_channels = n_outlier_channels
        self._options = {"tail_tokens": residual_length, "sink_tokens": sink_tokens, "seed": seed}
        self._make(1, 1)  # so that wrong options are an error here

    @classmethod
    def for_gqa(
        cls,
        head_dim: int,
        num_kv_heads: int,
        num_query_heads: int,
        bit_width: int = 3,
        residual_length: int = 128,
        pre_rope: bool = False,
        n_outlier_channels: int = 0,
        seed: int = 0,
    ) -> TurboQuantKVCache:
        """Keys get one bit more where more than two query heads share them."""
        return cls(
            head_dim,
            bit_width,
            residual_length,
            key_bit_width=gqa_key_bits(bit_width, num_kv_heads, num_query_heads),
            pre_rope=pre_rope,
            n_outlier_channels=n_outlier_channels,
            seed=seed,
        )

    def _make(self, batch: int, heads: int) -> Cache:
        pair = self.key_bit_width, self.value_bit_width
        return Cache(
            library(),
            *sides([pair], self.n_outlier_channels)[0],
            batch,
            layers=1,
            query_heads=heads,
            kv_heads=heads,
            key_dim=self.head_dim,
            value_dim=self.head_dim,
            **self._options,
        )

    def to(self, device: Any) -> TurboQuantKVCache:
        """For programs that call it: codes are on the CPU, results where the input was."""
        return self

    def compress(self, keys: Any, values: Any) -> CompressedKV:
        """keys and values (batch, kv heads, tokens, head_dim)."""
        if len(keys.shape) != 4 or keys.shape[3] != self.head_dim:
            raise ValueError(
                f"keys must be (batch, heads, tokens, {self.head_dim}), not {tuple(keys.shape)}"
            )
        return CompressedKV(self._make(keys.shape[0], keys.shape[1]), keys, values)

    def decompress_keys(self, compressed: CompressedKV) -> Any:
        return compressed.decompress()[0]

    def decompress_values(self, compressed: CompressedKV) -> Any:
        return compressed.decompress()[1]

    def attention(self, query: Any, compressed: CompressedKV, scale: float | None = None) -> Any:
        return compressed.attention(query, scale)

    def memory_savings(
        self, batch_size: int, num_heads: int, seq_len: int
    ) -> tuple[float, float, float]:
        """MiB in half precision, MiB here, and their ratio, for so many tokens.

        Measured: one head of one sequence is filled, and what the allocator gave is counted.
        """
        cache = self._make(1, 1)
        for at in range(0, seq_len, 4096):
            zeros = np.zeros((min(4096, seq_len - at), 1, self.head_dim), np.float32)
            cache.append(0, at, zeros, zeros)
        memory = cache.memory()
        heads = batch_size * num_heads
        return (
            heads * memory.half / MEBIBYTE,
            heads * memory.allocated / MEBIBYTE,
            memory.half / max(memory.allocated, 1),
        )
