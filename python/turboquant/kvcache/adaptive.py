"""Bits by layer: given, along a ramp, or by what each layer's attention loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ._library import RAW_BITS, Cache, bit_pair, library, sides
from .cache import CompressedKV, TurboQuantKVCache, to_numpy


def uniform_allocation(n_layers: int, bit_width: int) -> list[int]:
    return [bit_width] * n_layers


def gradient_allocation(
    n_layers: int,
    min_bits: int = 2,
    max_bits: int = 4,
    strategy: Literal["linear", "step"] = "linear",
) -> list[int]:
    """More bits for later layers: a ramp, or three steps."""
    if n_layers < 1 or not 1 <= min_bits <= max_bits <= 4:
        raise ValueError("there must be a layer, and 1 <= min_bits <= max_bits <= 4")
    if strategy == "linear":
        return [
            round(min_bits + i / max(n_layers - 1, 1) * (max_bits - min_bits))
            for i in range(n_layers)
        ]
    if strategy == "step":
        third = n_layers // 3
        middle = (min_bits + max_bits + 1) // 2
        return [min_bits] * third + [middle] * (n_layers - 2 * third) + [max_bits] * third
    raise ValueError(f"the strategy must be 'linear' or 'step', not {strategy!r}")


class Captured(NamedTuple):
    """What one layer saw: q [n][query heads][d], k and v [n][kv heads][d], after RoPE."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


@dataclass
class Calibration:
    """error[layer][side][i]: share of the attention outputs' energy that is lost when that side
    alone is coded with bits[i]; side 0 is keys."""

    bits: list[int]
    error: np.ndarray


def _outputs(captured: Captured, key_bits: int, value_bits: int) -> np.ndarray:
    q, k, v = captured
    cache = Cache(
        library(),
        *sides([(key_bits, value_bits)])[0],
        layers=1,
        query_heads=q.shape[1],
        kv_heads=k.shape[1],
        key_dim=k.shape[2],
        value_dim=v.shape[2],
        sink_tokens=0,
        tail_tokens=0,
    )
    cache.append(0, 0, k, v)
    return cache.attend(0, q)


def calibrate(
    captured: Sequence[Captured | tuple], bits: Sequence[int] = (1, 2, 3, 4)
) -> Calibration:
    """Measures the layers' causal attention, every full page coded."""
    chosen = sorted(set(bits))
    error = np.empty((len(captured), 2, len(chosen)))
    for i, layer in enumerate(captured):
        layer = Captured(*(to_numpy(x) for x in layer))
        exact = _outputs(layer, RAW_BITS, RAW_BITS)
        energy = max(float((exact.astype(np.float64) ** 2).sum()), 1e-30)
        for j, b in enumerate(chosen):
            for s, pair in enumerate(((b, RAW_BITS), (RAW_BITS, b))):
                error[i, s, j] = ((_outputs(layer, *pair) - exact).astype(np.float64) ** 2).sum()
        error[i] /= energy
    return Calibration(chosen, error)


def allocate(calibration: Calibration, target_mean: float) -> list[tuple[int, int]]:
    """(key bits, value bits) per layer, their mean at most target_mean.

    Each bit goes where it lowers the sum of errors most; a side whose error a bit does not lower
    keeps what it has.
    """
    bits, error = calibration.bits, calibration.error
    if not bits[0] <= target_mean:
        raise ValueError(f"a mean of {target_mean} bits is below the fewest, {bits[0]}")
    chosen = np.zeros(error.shape[:2], int)
    room = target_mean * chosen.size - bits[0] * chosen.size
    while True:
        best, gain = None, 0.0
        for at in np.ndindex(*chosen.shape):
            for step in range(chosen[at] + 1, len(bits)):
                cost = bits[step] - bits[chosen[at]]
                lowered = (error[at][chosen[at]] - error[at][step]) / cost
                if cost <= room + 1e-9 and lowered > gain:
                    best, gain = (at, step), lowered
        if best is None:
            return [(bits[k], bits[v]) for k, v in chosen]
        at, step = best
        room -= bits[step] - bits[chosen[at]]
        chosen[at] = step


def capture(model: Any, tokenizer: Any, text: str) -> list[Captured]:
    """q, k and v of every attention layer of a transformers model, in order of the calls."""
    inputs = tokenizer(text, return_tensors="pt").to(next(model.parameters()).device)
    return capture_ids(model, **inputs)


def capture_ids(model: Any, input_ids: Any, **inputs: Any) -> list[Captured]:
    """capture() of tokens, (1, n)."""
    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    captured: list[Captured] = []

    def watch(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        captured.append(Captured(*(to_numpy(x[0].transpose(0, 1)) for x in (query, key, value))))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("turboquant_capture", watch)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("turboquant_capture")
        with torch.no_grad():
            model(input_ids=input_ids, **inputs, use_cache=False)
    finally:
        model.set_attn_implementation(before)
    if not captured:
        raise ValueError(
            f"{type(model).__name__} has no attention layer that transformers' "
            "AttentionInterface serves, so there is nothing to calibrate"
        )
    return captured


class AdaptiveKVCache:
    """A TurboQuantKVCache per layer, each of its own bits: a number, or keys' and values' bits."""

    def __init__(
        self,
        head_dim: int,
        layer_bits: Sequence[int | tuple[int, int]],
        residual_length: int = 128,
        n_outlier_channels: int = 0,
        calibration: Calibration | None = None,
    ):
        if len(layer_bits) == 0:
            raise ValueError("there must be a layer")
        self.head_dim = head_dim
        self.layer_bits = list(layer_bits)
        self.n_layers = len(self.layer_bits)
        self.calibration = calibration
        self.pairs = [bit_pair(b) for b in self.layer_bits]
        self.caches = [
            TurboQuantKVCache(
                head_dim,
                max(pair),
                residual_length,
                key_bit_width=pair[0],
                value_bit_width=pair[1],
                n_outlier_channels=n_outlier_channels if min(pair) < 4 else 0,
            )
            for pair in self.pairs
        ]

    def compress_layer(self, layer_idx: int, keys: Any, values: Any) -> CompressedKV:
        return self.caches[layer_idx].compress(keys, values)

    def decompress_layer_keys(self, layer_idx: int, compressed: CompressedKV) -> Any:
        return self.caches[layer_idx].decompress_keys(compressed)

    def decompress_layer_values(self, layer_idx: int, compressed: CompressedKV) -> Any:
        return self.caches[layer_idx].decompress_values(compressed)

    def attention_layer(
        self, layer_idx: int, query: Any, compressed: CompressedKV, scale: float | None = None
    ) -> Any:
        return self.caches[layer_idx].attention(query, compressed, scale)

    def summary(self) -> str:
        """A table: bits of keys and values by layer, and where calibrated, the outputs' error."""
        lines = [f"AdaptiveKVCache: {self.n_layers} layers, head_dim={self.head_dim}"]
        for i, (k, v) in enumerate(self.pairs):
            line = f"  Layer {i:2d}: keys {k}-bit, values {v}-bit"
            if self.calibration is not None:
                at = [self.calibration.bits.index(b) for b in (k, v)]
                lost = sum(self.calibration.error[i, s, at[s]] for s in (0, 1))
                line += f", outputs lose {100 * lost:.2f}%"
            lines.append(line)
        lines.append(f"  Average: {np.mean(self.pairs):.2f} bits, scales and means not counted")
        return "\n".join(lines)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        head_dim: int,
        calibration_text: str = "The quick brown fox jumps over the lazy dog. " * 20,
        target_avg_bits: float = 3.0,
        residual_length: int = 128,
        n_outlier_channels: int = 0,
    ) -> AdaptiveKVCache:
        """Bits by the attention of a transformers model on a text."""
        return cls.from_captured(
            capture(model, tokenizer, calibration_text),
            head_dim,
            target_avg_bits,
            residual_length,
            n_outlier_channels,
        )

    @classmethod
    def from_captured(
        cls,
        captured: Sequence[Captured | tuple],
        head_dim: int,
        target_avg_bits: float = 3.0,
        residual_length: int = 128,
        n_outlier_channels: int = 0,
    ) -> AdaptiveKVCache:
        calibration = calibrate(captured, (2, 3, 4) if target_avg_bits >= 2 else (1, 2, 3, 4))
        return cls(
            head_dim,
            allocate(calibration, target_avg_bits),
            residual_length,
            n_outlier_channels,
            calibration,
        )
