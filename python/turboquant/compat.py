"""turboquant.kvcache.compat, by the place that turboquant-torch has it in."""

from __future__ import annotations

from .kvcache.compat import Report, compatibility, compress_model_kv

__all__ = ["Report", "compatibility", "compress_model_kv"]
