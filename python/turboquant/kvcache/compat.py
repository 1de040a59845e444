"""What of a model's cache can be compressed, read from its transformers configuration.

    report = compatibility(model.config)
    print(report)            # a line per layer, with the reason where a layer is left alone
    report.require()         # an error with the reason where nothing can be done

What is not understood is refused, with its reason; nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Decoders whose every layer is, or names itself as, attention over a cache of keys and values.
DECODERS = frozenset(
    (
        "llama",
        "mistral",
        "mixtral",
        "ministral",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "phi",
        "phi3",
        "phimoe",
        "cohere",
        "cohere2",
        "gpt2",
        "gpt_neox",
        "gptj",
        "falcon",
        "opt",
        "granite",
        "olmo",
        "olmo2",
        "smollm3",
        "stablelm",
        "starcoder2",
        "gpt_oss",
    )
)
HYBRIDS = frozenset(
    (
        "jamba",
        "qwen3_next",
        "qwen3_5",
        "qwen3_5_text",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "bamba",
        "granitemoehybrid",
        "lfm2",
    )
)
ENCODER_DECODERS = frozenset(("t5", "mt5", "umt5", "bart", "mbart"))
WITHOUT_ATTENTION = frozenset(
    ("mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "rwkv6", "rwkv7", "xlstm")
)
WITHOUT_CACHE = frozenset(
    (
        "bert",
        "roberta",
        "distilbert",
        "electra",
        "deberta",
        "deberta-v2",
        "modernbert",
        "mpnet",
        "xlm-roberta",
    )
)


@dataclass(frozen=True)
class AttentionLayer:
    """The geometry that tq_kv_config and tq_kv_attention take."""

    index: int
    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0  # 0: all tokens
    softcap: float = 0
    scale: float = 0  # of scores; 0: 1 / sqrt(key_dim)
    bias_per_head: bool = False  # added to scores, by relative position


@dataclass
class Report:
    model_type: str
    layers: list[AttentionLayer] = field(default_factory=list)
    left_alone: dict[int, str] = field(default_factory=dict)  # by layer, why
    notes: list[str] = field(default_factory=list)
    refused: str | None = None

    def require(self) -> list[AttentionLayer]:
        if self.refused is not None:
            raise ValueError(f"{self.model_type}: {self.refused}")
        return self.layers

    def __str__(self) -> str:
        if self.refused is not None:
            return f"{self.model_type}: refused: {self.refused}"
        counts = f"{len(self.layers)} layers compressed, {len(self.left_alone)} left alone"
        lines = [f"{self.model_type}: {counts}"]
        told = {}
        for x in self.layers:
            told[x.index] = f"{x.query_heads} query heads, {x.kv_heads} kv heads, size {x.key_dim}"
            told[x.index] += f", window {x.window}" if x.window else ""
            told[x.index] += f", softcap {x.softcap:g}" if x.softcap else ""
        told.update({i: f"left alone: {why}" for i, why in self.left_alone.items()})
        lines += [f"  layer {i:2d}: {told[i]}" for i in sorted(told)]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


class _Config:
    """A configuration's values under the names that different models give them."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def get(self, *names: str, default: Any = None) -> Any:
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        return default

    def need(self, *names: str) -> Any:
        value = self.get(*names)
        if value is None:
            raise ValueError("its configuration has none of " + ", ".join(names))
        return value


def compatibility(config: Any) -> Report:
    """config: a transformers configuration, or its dictionary."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    if isinstance(values.get("text_config"), Mapping):
        values = {"model_type": values.get("model_type"), **values["text_config"]}
    report = Report(str(values.get("model_type")))
    try:
        _fill(report, _Config(values))
    except ValueError as e:
        report.layers, report.left_alone, report.refused = [], {}, str(e)
    return report


def compress_model_kv(past_key_values: Any, model: Any, **options: Any) -> Any:
    """turboquant.kvcache.transformers_cache.compress_model_kv, by its old place."""
    from .transformers_cache import compress_model_kv as compress

    return compress(past_key_values, model, **options)


def _fill(report: Report, c: _Config) -> None:
    kind = report.model_type
    if kind in WITHOUT_ATTENTION:
        raise ValueError(
            "it has no attention layer; its state does not grow with the text, so there "
            "is nothing to compress"
        )
    if kind in WITHOUT_CACHE:
        raise ValueError("it is an encoder and keeps no cache")
    if c.get("kv_lora_rank") is not None:
        raise ValueError(
            f"its cache holds latent vectors of {c.get('kv_lora_rank')} numbers (MLA), not "
            "keys and values per head: they are small already, and attention on codes of "
            "them is another computation"
        )
    if kind in ENCODER_DECODERS:
        return _fill_encoder_decoder(report, c)
    if kind not in DECODERS | HYBRIDS:
        raise ValueError("this type of model is not known here; give its geometry yourself")
    count = c.need("num_hidden_layers", "n_layer", "num_layers")
    for i in range(count):
        why = _not_attention(kind, c, i)
        if why is None:
            report.layers.append(_layer(c, i))
        else:
            report.left_alone[i] = why
    if not report.layers:
        raise ValueError("none of its layers is attention over a cache of keys and values")


def _not_attention(kind: str, c: _Config, i: int) -> str | None:
    types = c.get("layer_types", "layers_block_type")
    if types is not None:
        if types[i] in ("full_attention", "sliding_attention", "attention"):
            return None
        if types[i] == "chunked_attention":
            return "it attends within chunks, which a window cannot say"
        return f"its type is {types[i]}, which keeps a state of a fixed size"
    period = c.get("attn_layer_period")
    if period is not None:
        if i % period == c.get("attn_layer_offset", default=0):
            return None
        return "it is a state-space layer, whose state has a fixed size"
    interval = c.get("full_attention_interval")
    if interval is not None:
        return (
            None if (i + 1) % interval == 0 else "it is linear attention: a state of a fixed size"
        )
    if kind in HYBRIDS:
        raise ValueError(
            "it mixes attention with other layers, and its configuration does not say which "
            "are which"
        )
    return None


def _window(c: _Config, i: int) -> int:
    window = c.get("sliding_window", default=0)
    if not window or c.get("use_sliding_window") is False:
        return 0
    types = c.get("layer_types")
    if types is not None:
        return window if types[i] == "sliding_attention" else 0
    pattern = c.get("sliding_window_pattern", "_sliding_window_pattern")
    if pattern is None and c.get("model_type") == "gemma2":
        pattern = 2
    if pattern is not None:  # the last of each run of so many layers sees everything
        return 0 if (i + 1) % pattern == 0 else window
    first = c.get("max_window_layers")
    return window if first is None or i >= first else 0


def _layer(c: _Config, i: int) -> AttentionLayer:
    heads = c.need("num_attention_heads", "n_head")
    kv_heads = c.get("num_key_value_heads", "num_kv_heads")
    if c.get("model_type") == "falcon" and not c.get("new_decoder_architecture", default=False):
        kv_heads = 1 if c.get("multi_query", default=True) else heads
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads != 0:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} kv heads")
    dim = c.get("head_dim")
    if dim is None:
        dim = c.need("hidden_size", "n_embd") // heads
    if not 1 <= dim <= 1024:
        raise ValueError(f"its heads have size {dim}, and 1 to 1024 are supported")
    scale = c.get("attention_multiplier", default=0)
    if c.get("query_pre_attn_scalar") is not None:
        scale = c.get("query_pre_attn_scalar") ** -0.5
    return AttentionLayer(
        i,
        heads,
        kv_heads,
        dim,
        c.get("v_head_dim", default=dim),
        _window(c, i),
        c.get("attn_logit_softcapping", default=0),
        scale,
    )


def _fill_encoder_decoder(report: Report, c: _Config) -> None:
    bart = report.model_type in ("bart", "mbart")
    if bart:
        heads = c.need("decoder_attention_heads")
        dim, count, scale = c.need("d_model") // heads, c.need("decoder_layers"), 0.0
    else:
        heads, dim, scale = c.need("num_heads"), c.need("d_kv"), 1.0
        count = c.need("num_decoder_layers", "num_layers")
        report.notes.append("the bias by relative position goes into the mask")
    report.layers = [
        AttentionLayer(i, heads, heads, dim, dim, scale=scale, bias_per_head=not bart)
        for i in range(count)
    ]
    report.notes.append(
        "self-attention of the decoder; the keys and values of the encoder's output are "
        "written once and left alone"
    )
