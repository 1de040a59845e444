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

from dataclasses import dataclass
from typing import Any

from transformers.cache_utils import Cache as BaseCache
from transformers.cache_utils import CacheLayerMixin, DynamicCache, EncoderDecoderCache

from ._library import Cache, bit_pair, library, sides
from .compat import AttentionLayer, Report, compatibility
from .transformers_attention import set_attention
from .transformers_layer import DeviceLayer, TurboQuantLayer


@dataclass(frozen=True)
class Options:
    """What a compressed cache keeps: the options of TurboQuantCache, wrap and compress_model_kv.

    bit_width: a number for all layers, (keys, values), or a list of these for the compressed layers
    (AdaptiveKVCache.layer_bits); None: 3 for heads of 128 and more, 4 for smaller ones. The last
    residual_length tokens, and up to 63 more, and the first sink_tokens stay in half precision;
    n_outlier_channels per head get one bit more (1 to 3 bits). device_tokens: room for so many
    tokens of each sequence on the model's CUDA device (heads of 64, 128 or 256, 2 to 4 bits); 0:
    codes are on the CPU.
    """

    bit_width: Any = None
    residual_length: int = 64
    n_outlier_channels: int = 0
    sink_tokens: int = 4
    seed: int = 0
    device_tokens: int = 0

    def pairs(self, layers: list[AttentionLayer]) -> list[tuple[int, int]]:
        """(key bits, value bits) of each layer."""
        bits = self.bit_width
        if bits is None:
            bits = 3 if layers[0].key_dim >= 128 else 4
        if isinstance(bits, (int, tuple)):
            bits = [bits] * len(layers)
        if len(bits) != len(layers):
            raise ValueError(
                f"bits are given for {len(bits)} layers, and {len(layers)} are compressed"
            )
        return [bit_pair(b) for b in bits]


class TurboQuantCache(DynamicCache):
    """A cache of codes for a model: pass it as its cache, with set_attention(model) once.

    config: the model's; the rest are Options. Layers without attention (report.left_alone) keep
    what transformers gives them. Raises ValueError with the reason when nothing of the model can be
    compressed.
    """

    def __init__(self, config: Any, *options: Any, **named: Any):
        super().__init__(config=config)
        self.report = compress_layers(self, config, Options(*options, **named))

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
        **named: Any,
    ):
        if model_info is None:
            raise ValueError(
                "the model's configuration is needed: TurboQuantDynamicCache.from_model(model), or "
                "model_info=model.config"
            )
        super().__init__(
            model_info, bit_width, residual_length, n_outlier_channels, sink_tokens, **named
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


def compress_layers(cache: DynamicCache, config: Any, options: Options) -> Report:
    """Puts layers of codes in the place of a cache's attention layers, with what those hold."""
    report = compatibility(config)
    layers = report.require()
    chosen = sides(options.pairs(layers), options.n_outlier_channels)
    while len(cache.layers) <= max(x.index for x in layers):
        cache.layers.append(cache.layer_class_to_replicate())
    for layer, (keys, values) in zip(layers, chosen):
        old = cache.layers[layer.index]
        if not isinstance(old, CacheLayerMixin) or hasattr(old, "conv_states"):
            raise ValueError(
                f"layer {layer.index} keeps a {type(old).__name__} in transformers, which is more "
                "than keys and values"
            )
        new = _make_layer(layer, keys, values, options)
        if old.is_initialized and old.get_seq_length() > 0:
            new.update(old.keys, old.values)
            new._before = old.get_seq_length() - old.keys.shape[2]
        cache.layers[layer.index] = new
    return report


def _make_layer(
    layer: AttentionLayer, keys: dict, values: dict, options: Options
) -> TurboQuantLayer:
    heads, per_head = layer.query_heads, layer.bias_per_head
    geometry = {"query_heads": heads, "kv_heads": layer.kv_heads}
    geometry |= {"key_dim": layer.key_dim, "value_dim": layer.value_dim}
    raw = {"sink_tokens": options.sink_tokens, "tail_tokens": options.residual_length}
    raw["seed"] = options.seed
    Cache(library(), keys, values, layers=1, **geometry, **raw)  # wrong options are an error now
    if options.device_tokens > 0:
        if per_head:
            raise ValueError("a bias per head is understood on the CPU alone: no device_tokens")
        return DeviceLayer(
            heads, keys, values, layer.window, device_tokens=options.device_tokens, **raw
        )
    return TurboQuantLayer(heads, keys, values, layer.window, per_head, **raw)


def compress_model_kv(
    past_key_values: Any,
    model: Any,
    *,
    bit_width: Any = 3,
    residual_length: int = 0,
    n_outlier_channels: int = 0,
    model_info: Any = None,
    sink_tokens: int = 0,
    **named: Any,
) -> BaseCache:
    """The tokens of a plain cache as codes: a cache for the model, whose attention is set to ours.

    The plain cache is left as it is; layers without attention are shared with it. The options are
    Options.
    """
    self_attention = past_key_values
    if isinstance(past_key_values, EncoderDecoderCache):
        self_attention = past_key_values.self_attention_cache
    if not isinstance(self_attention, DynamicCache):
        raise ValueError(f"a DynamicCache can be compressed, not a {type(self_attention).__name__}")
    options = Options(bit_width, residual_length, n_outlier_channels, sink_tokens, **named)
    cache = TurboQuantCache.__new__(TurboQuantCache)
    BaseCache.__init__(cache, layers=list(self_attention.layers))
    config = model.config if model_info is None else model_info
    cache.report = compress_layers(cache, config, options)
    set_attention(model)
    if isinstance(past_key_values, EncoderDecoderCache):
        return EncoderDecoderCache(cache, past_key_values.cross_attention_cache)
    return cache
