"""Attention on codes as a function of transformers' AttentionInterface, and its masks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from .transformers_layer import CompressedStates

NAME = "turboquant"  # of the attention and of its masks in transformers' tables


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
    set_implementation(model, {named[0]: NAME} if named else NAME)
    decoder = text if named else model.config
    if decoder._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} computes attention by itself and not through transformers' "
            "AttentionInterface, so it can not attend to codes"
        )


def set_implementation(model: Any, name: str | dict) -> None:
    """The attention of a model, also where its decoder has a copy of its configuration (T5)."""
    model.set_attn_implementation(name)
    if model.config.is_encoder_decoder:
        decoder = model.get_decoder()
        if decoder.config is not model.config:
            decoder.set_attn_implementation(name)
