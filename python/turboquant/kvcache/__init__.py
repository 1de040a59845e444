"""Keys and values of transformers in 1 to 4 bits, and attention on the codes.

    cache = TurboQuantKVCache(head_dim=128, bit_width=3, residual_length=128)
    compressed = cache.compress(keys, values)       # (batch, kv heads, tokens, 128)
    compressed.append(more_keys, more_values)       # older tokens are not touched
    output = cache.attention(query, compressed)     # (batch, query heads, n, 128)

    model = wrap(model)                             # a transformers model that keeps codes

numpy arrays and torch tensors are taken, and given back in kind. The work is done by
libturboquant_kv on the CPU; docs/kv_format.md says how tokens are kept.
"""

from __future__ import annotations

from typing import Any

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

_WITH_TRANSFORMERS = {
    "Options": "transformers_cache",
    "TurboQuantCache": "transformers_cache",
    "TurboQuantDynamicCache": "transformers_cache",
    "TurboQuantLayer": "transformers_layer",
    "compress_model_kv": "transformers_cache",
    "set_attention": "transformers_attention",
    "unwrap": "transformers_wrap",
    "wrap": "transformers_wrap",
}


def __getattr__(name: str) -> Any:
    """What needs torch and transformers is imported when it is asked for."""
    if name in _WITH_TRANSFORMERS:
        import importlib

        return getattr(importlib.import_module("." + _WITH_TRANSFORMERS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AdaptiveKVCache",
    "AttentionLayer",
    "Cache",
    "Calibration",
    "CompressedKV",
    "Library",
    "Options",
    "Report",
    "TurboQuantCache",
    "TurboQuantDynamicCache",
    "TurboQuantKVCache",
    "TurboQuantLayer",
    "allocate",
    "calibrate",
    "compatibility",
    "compress_model_kv",
    "gqa_key_bits",
    "gradient_allocation",
    "library",
    "set_attention",
    "uniform_allocation",
    "unwrap",
    "wrap",
]
