"""wrap(model): a transformers model whose caches hold codes."""

from __future__ import annotations

import inspect
from typing import Any

from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from .transformers_attention import set_attention, set_implementation
from .transformers_cache import Options, compress_layers
from .transformers_layer import TurboQuantLayer


def wrap(
    model: Any,
    bit_width: Any = None,
    residual_length: int = 64,
    n_outlier_channels: int = 0,
    verbose: bool = False,
    **named: Any,
) -> Any:
    """Makes a model keep codes instead of keys and values; gives the model back.

    Every call that uses a cache then has a compressed one: none given, one is made; an empty
    DynamicCache is made to hold codes; another kind of cache is refused. The options are those of
    TurboQuantCache. verbose: generate() says how much memory its cache took. unwrap(model) undoes
    it.
    """
    options = Options(bit_width, residual_length, n_outlier_channels, **named)
    # Refuses what can not be done, before anything changes.
    compress_layers(DynamicCache(config=model.config), model.config, options)
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

    def __init__(self, model: Any, options: Options, before: str, verbose: bool):
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
        set_implementation(model, self.before)
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
        compress_layers(cache, config, self.options)


def _told(cache: Any) -> str:
    layers = [x for x in cache.layers if isinstance(x, TurboQuantLayer)] if cache else []
    ours, half = sum(x.nbytes for x in layers), sum(x.nbytes_half for x in layers)
    if not ours:
        return "no cache was used"
    return (
        f"{len(layers)} layers, {layers[0].get_seq_length()} tokens: {ours} bytes, "
        f"{half / ours:.2f} times fewer than in half precision"
    )
