"""Which layers of which models: the matrix of families, and refusals that say why."""

from __future__ import annotations

import pytest

compat = pytest.importorskip("turboquant.kvcache.compat")


def decoder(model_type: str, layers: int = 4, heads: int = 32, kv: int = 8, **more) -> dict:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_size": heads * 128,
        **more,
    }


def windows(config: dict) -> list[int]:
    return [layer.window for layer in compat.compatibility(config).require()]


@pytest.mark.parametrize(
    "name",
    ["llama", "mistral", "mixtral", "qwen2", "qwen3", "phi", "phi3", "cohere", "granite", "olmo2"],
)
def test_every_layer_of_plain_decoders(name: str):
    report = compat.compatibility(decoder(name))
    assert report.refused is None and not report.left_alone
    assert [
        (x.index, x.query_heads, x.kv_heads, x.key_dim, x.value_dim) for x in report.layers
    ] == [(i, 32, 8, 128, 128) for i in range(4)]
    assert "4 layers compressed" in str(report)


def test_gpt2_and_phi_are_not_skipped():
    """The reference finds no keys in models with fused projections and says nothing."""
    report = compat.compatibility(
        {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768}
    )
    assert [(x.query_heads, x.kv_heads, x.key_dim) for x in report.layers] == [(12, 12, 64)] * 12
    phi = {
        "model_type": "phi",
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "hidden_size": 2560,
    }
    assert [(x.kv_heads, x.key_dim) for x in compat.compatibility(phi).layers] == [(32, 80)] * 2


def test_windows():
    assert windows(decoder("mistral", sliding_window=4096)) == [4096] * 4
    assert windows(decoder("qwen2", sliding_window=4096, use_sliding_window=False)) == [0] * 4
    assert windows(
        decoder("qwen2", sliding_window=512, use_sliding_window=True, max_window_layers=3)
    ) == [0, 0, 0, 512]
    assert windows(decoder("gemma2", sliding_window=64)) == [64, 0, 64, 0]
    assert windows(decoder("gemma3_text", sliding_window=64, sliding_window_pattern=3)) == [
        64,
        64,
        0,
        64,
    ]
    types = ["sliding_attention", "full_attention"] * 2
    assert windows(decoder("gpt_oss", sliding_window=128, layer_types=types)) == [128, 0, 128, 0]


def test_softcap_scale_and_head_size_of_gemma():
    layer = compat.compatibility(
        decoder("gemma2", head_dim=256, attn_logit_softcapping=50.0, query_pre_attn_scalar=256)
    ).layers[0]
    assert (layer.key_dim, layer.softcap, layer.scale) == (256, 50.0, 1 / 16)


def test_text_inside_a_model_of_images():
    report = compat.compatibility({"model_type": "gemma3", "text_config": decoder("gemma3_text")})
    assert report.model_type == "gemma3_text" and len(report.layers) == 4


def test_hybrids_have_their_attention_layers():
    jamba = compat.compatibility(
        decoder("jamba", layers=8, attn_layer_period=8, attn_layer_offset=4)
    )
    assert [x.index for x in jamba.layers] == [4]
    assert len(jamba.left_alone) == 7 and "state" in jamba.left_alone[0]
    types = ["linear_attention"] * 3 + ["full_attention"]
    for kind in ("qwen3_5_text", "qwen3_next"):
        qwen = compat.compatibility(decoder(kind, layer_types=types))
        assert [x.index for x in qwen.layers] == [3]
        assert "left alone: its type is linear_attention" in str(qwen)
    with pytest.raises(ValueError, match="does not say"):
        compat.compatibility(decoder("jamba")).require()


def test_encoder_decoders():
    t5 = compat.compatibility({"model_type": "t5", "num_heads": 8, "d_kv": 64, "num_layers": 6})
    assert [(x.key_dim, x.scale) for x in t5.layers] == [(64, 1.0)] * 6
    assert any("encoder's output" in note for note in t5.notes)
    bart = compat.compatibility(
        {"model_type": "bart", "decoder_attention_heads": 16, "d_model": 1024, "decoder_layers": 12}
    )
    assert [(x.key_dim, x.scale) for x in bart.layers] == [(64, 0)] * 12


@pytest.mark.parametrize(
    "config, why",
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "latent"),
        ({"model_type": "mamba"}, "nothing to compress"),
        ({"model_type": "rwkv"}, "nothing to compress"),
        ({"model_type": "bert"}, "no cache"),
        ({"model_type": "brand_new"}, "not known"),
        ({"model_type": "llama", "num_hidden_layers": 2}, "num_attention_heads"),
        (decoder("llama", heads=30, kv=8), "no multiple"),
        (decoder("llama", head_dim=2048), "size 2048"),
        ({}, "not known"),
    ],
)
def test_refusals_say_why(config: dict, why: str):
    report = compat.compatibility(config)
    assert report.refused is not None and why in report.refused and not report.layers
    assert why in str(report)
    with pytest.raises(ValueError, match=why):
        report.require()
