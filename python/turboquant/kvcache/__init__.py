"""Keys and values of transformers in 1 to 4 bits, and attention on the codes.

    cache = TurboQuantKVCache(head_dim=128, bit_width=3, residual_length=128)
    compressed = cache.compress(keys, values)       # (batch, kv heads, tokens, 128)
    compressed.append(more_keys, more_values)       # older tokens are not touched
    output = cache.attention(query, compressed)     # (batch, query heads, n, 128)

numpy arrays and torch tensors are taken, and given back in kind. The work is done by
libturboquant_kv on the CPU; docs/kv_format.md says how tokens are kept.
"""

from __future__ import annotations

from ._library import Cache, Library, library
from .adaptive import (
    AdaptiveKVCache,
    Calibration,
    allocate,
    calibrate,
    gradient_allocation,
    uniform_allocation,
)
from .cache import CompressedKV, TurboQuantKVCache, gqa_key_bits
from .compat import AttentionLayer, Report, compatibility

__all__ = [
    "AdaptiveKVCache",
    "AttentionLayer",
    "Cache",
    "Calibration",
    "CompressedKV",
    "Library",
    "Report",
    "TurboQuantKVCache",
    "allocate",
    "calibrate",
    "compatibility",
    "gqa_key_bits",
    "gradient_allocation",
    "library",
    "uniform_allocation",
]
