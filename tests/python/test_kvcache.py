"""turboquant.kvcache: the names of turboquant-torch, without its faults."""

from __future__ import annotations

import numpy as np
import pytest

kvcache = pytest.importorskip("turboquant.kvcache")
try:
    kvcache.library()
except OSError:
    pytest.skip("libturboquant_kv is not installed with the package", allow_module_level=True)


def normals(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, 1) for x in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_compress_and_attend():
    keys, values = normals(2, 3, 300, 64), normals(2, 3, 300, 64, seed=2)
    query = normals(2, 3, 5, 64, seed=3)
    errors = []
    for bits in (1, 2, 3, 4, 16):
        cache = kvcache.TurboQuantKVCache(head_dim=64, bit_width=bits, residual_length=0)
        compressed = cache.compress(keys, values)
        seen = cache.decompress_keys(compressed), cache.decompress_values(compressed)
        assert seen[0].shape == keys.shape
        out = cache.attention(query, compressed)
        assert relative(out, exact(query, *seen)) < 0.02
        errors.append(relative(seen[0], keys))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.1 and errors[4] < 1e-3


def test_the_examples_of_the_page():
    """Those of turboquant-torch's page, with fewer heads; names are the package's own."""
    turboquant = pytest.importorskip("turboquant")
    if not hasattr(turboquant, "TurboQuantKVCache"):
        pytest.skip("the package's core is not here")
    cache = turboquant.TurboQuantKVCache(head_dim=128, bit_width=3, residual_length=128)
    keys, values, query = normals(2, 4, 2048, 128), normals(2, 4, 2048, 128), normals(2, 4, 1, 128)
    compressed = cache.compress(keys, values)
    assert cache.attention(query, compressed).shape == query.shape
    half, ours, ratio = cache.memory_savings(2, 4, 2048)
    assert ours < half and 3 < ratio < 16 / 3
    cache = turboquant.TurboQuantKVCache.for_gqa(
        head_dim=128, num_kv_heads=8, num_query_heads=32, bit_width=3, residual_length=128
    )
    assert cache.key_bit_width == 4
    turboquant.TurboQuantKVCache(
        head_dim=128, bit_width=3, n_outlier_channels=8, residual_length=128
    )
    turboquant.AdaptiveKVCache(head_dim=128, layer_bits=[2] * 10 + [3] * 12 + [4] * 10)
    bits = turboquant.gradient_allocation(n_layers=32, min_bits=2, max_bits=4, strategy="linear")
    assert turboquant.AdaptiveKVCache(head_dim=128, layer_bits=bits).n_layers == 32


def test_the_last_tokens_stay():
    keys = normals(1, 2, 300, 64)
    cache = kvcache.TurboQuantKVCache(head_dim=64, bit_width=2, residual_length=100)
    seen = cache.decompress_keys(cache.compress(keys, keys))
    assert relative(seen[:, :, 200:], keys[:, :, 200:]) < 1e-3
    assert relative(seen[:, :, :128], keys[:, :, :128]) > 0.1


def test_grouped_queries_of_any_number():
    """The reference fails on shapes where query heads outnumber kv heads."""
    keys, values = normals(1, 2, 130, 64), normals(1, 2, 130, 64, seed=2)
    cache = kvcache.TurboQuantKVCache(head_dim=64, bit_width=4)
    compressed = cache.compress(keys, values)
    for group in (1, 3, 8, 16):
        query = normals(1, 2 * group, 9, 64, seed=group)
        seen = compressed.decompress()
        assert relative(compressed.attention(query), exact(query, *seen)) < 0.02
    with pytest.raises(ValueError):
        compressed.attention(normals(1, 3, 1, 64))


def test_append_adds_and_keeps_codes():
    """The reference's second add replaces the first, and every call encodes everything again."""
    keys, values = normals(1, 2, 400, 64), normals(1, 2, 400, 64, seed=2)
    cache = kvcache.TurboQuantKVCache(head_dim=64, bit_width=3, residual_length=0)
    whole = cache.compress(keys, values)
    parts = cache.compress(keys[:, :, :150], values[:, :, :150])
    before = parts.decompress()[0]
    for at in range(150, 400, 25):
        parts.append(keys[:, :, at : at + 25], values[:, :, at : at + 25])
    assert parts.seq_len == 400
    np.testing.assert_array_equal(parts.decompress()[0], whole.decompress()[0])
    np.testing.assert_array_equal(parts.decompress()[0][:, :, :128], before[:, :, :128])


def test_memory_is_what_is_allocated():
    """The reference keeps codes as int64 and reports ratios without norms and padding."""
    for bits in (2, 3, 4):
        cache = kvcache.TurboQuantKVCache(head_dim=64, bit_width=bits, residual_length=0)
        x = normals(1, 4, 2048, 64)
        compressed = cache.compress(x, x)
        half, ours, ratio = cache.memory_savings(1, 4, 2048)
        assert half == 2 * 2 * x.size / 2**20
        assert abs(ours * 2**20 - compressed.nbytes) < 0.02 * compressed.nbytes
        assert ratio == pytest.approx(half / ours)
        assert compressed.nbytes > x.size * 2 * bits / 8  # more than the codes alone
        assert compressed.nbytes < x.size * 2 * (bits + 1.1) / 8


def test_one_channel_more_is_one_channel_more():
    """The reference codes d + 1 channels with the levels of another d, and pads them to a power of
    two."""
    for d in (64, 128):
        error, size = [], []
        for dim in (d, d + 1):
            x = normals(1, 1, 1024, dim)
            cache = kvcache.TurboQuantKVCache(dim, bit_width=3, residual_length=0)
            compressed = cache.compress(x, x)
            error.append(relative(compressed.decompress()[1], x))
            size.append(compressed.nbytes)
        assert error[1] == pytest.approx(error[0], rel=0.02)
        assert size[0] < size[1] < 1.2 * size[0]


def test_outliers_of_keys_are_not_those_of_values():
    keys, values = normals(1, 1, 128, 64), normals(1, 1, 128, 64, seed=2)
    keys[..., :8] *= 20
    values[..., 32:40] *= 20
    plain = kvcache.TurboQuantKVCache(64, 2, 0).compress(keys, values).decompress()
    routed = kvcache.TurboQuantKVCache(64, 2, 0, n_outlier_channels=8).compress(keys, values)
    for x, before, after in zip((keys, values), plain, routed.decompress()):
        assert relative(after, x) < 0.6 * relative(before, x)


def test_outliers_are_chosen_once():
    first, later = normals(1, 1, 64, 64), normals(1, 1, 64, 64, seed=2)
    first[..., :8] *= 20
    later[..., 32:40] *= 20
    cache = kvcache.TurboQuantKVCache(64, 2, 0, n_outlier_channels=8)
    compressed = cache.compress(first, first)
    before = compressed.decompress()[0]
    compressed.append(later, later)
    np.testing.assert_array_equal(compressed.decompress()[0][:, :, :64], before)


def test_shared_keys_never_get_fewer_bits():
    """The reference's rule gives 4 bits to keys of 5 and more."""
    assert [kvcache.gqa_key_bits(b, 2, 8) for b in (1, 2, 3, 4, 5, 8, 16)] == [2, 3, 4, 4, 5, 8, 16]
    assert [kvcache.gqa_key_bits(b, 4, 8) for b in (1, 2, 3, 4, 16)] == [1, 2, 3, 4, 16]
    cache = kvcache.TurboQuantKVCache.for_gqa(head_dim=64, num_kv_heads=2, num_query_heads=8)
    assert (cache.key_bit_width, cache.value_bit_width) == (4, 3)
    with pytest.raises(ValueError):
        kvcache.gqa_key_bits(3, 3, 8)


def test_gradient_allocation():
    assert kvcache.gradient_allocation(5, 2, 4) == [2, 2, 3, 4, 4]
    assert kvcache.gradient_allocation(6, 2, 4, "step") == [2, 2, 3, 3, 4, 4]
    assert kvcache.gradient_allocation(1) == [2]
    with pytest.raises(ValueError):
        kvcache.gradient_allocation(4, strategy="cubic")
    with pytest.raises(ValueError):
        kvcache.gradient_allocation(4, 3, 5)


def captured_layers() -> list[tuple]:
    """Sharp attention in layer 0, nearly even in layer 1."""
    layers = []
    for layer, sharpness in enumerate((4.0, 0.1)):
        q = sharpness * normals(256, 4, 64, seed=10 + layer)
        layers.append(
            (q, normals(256, 2, 64, seed=20 + layer), normals(256, 2, 64, seed=30 + layer))
        )
    return layers


def test_calibration_by_attention_outputs():
    calibration = kvcache.calibrate(captured_layers(), (2, 3, 4))
    assert calibration.error.shape == (2, 2, 3)
    assert (np.diff(calibration.error, axis=2) < 0).all()
    # Where all tokens weigh the same, keys hardly matter.
    assert calibration.error[1, 0, 0] < 0.01 * calibration.error[0, 0, 0]
    for target in (2, 2.5, 3, 3.75, 4):
        pairs = kvcache.allocate(calibration, target)
        assert np.mean(pairs) <= target
        assert target - np.mean(pairs) <= 1 / 4
    pairs = kvcache.allocate(calibration, 2.5)
    assert pairs[0][0] > pairs[1][0]
    even = sum(calibration.error[i, s, 1] for i in (0, 1) for s in (0, 1))
    chosen = kvcache.allocate(calibration, 3)
    ours = sum(calibration.error[i, s, chosen[i][s] - 2] for i in (0, 1) for s in (0, 1))
    assert ours < even
    with pytest.raises(ValueError):
        kvcache.allocate(calibration, 1.5)


def test_adaptive_cache():
    cache = kvcache.AdaptiveKVCache.from_captured(captured_layers(), 64, target_avg_bits=3)
    assert cache.n_layers == 2
    assert np.mean(cache.pairs) <= 3
    assert "Layer  1: keys 2-bit" in cache.summary() and "lose" in cache.summary()
    given = kvcache.AdaptiveKVCache(64, [2, (4, 3)], residual_length=0)
    assert given.pairs == [(2, 2), (4, 3)]
    assert "Average: 2.75" in given.summary()
    x = normals(1, 2, 256, 64)
    errors = [
        relative(given.decompress_layer_keys(i, given.compress_layer(i, x, x)), x) for i in (0, 1)
    ]
    assert errors[1] < 0.5 * errors[0]
    out = given.attention_layer(1, x, given.compress_layer(1, x, x))
    assert relative(out, exact(x, x, x)) < 0.2


def test_refusals():
    for wrong in (
        {"bit_width": 7},
        {"bit_width": 0},
        {"head_dim": 0},
        {"head_dim": 2000},
        {"bit_width": 4, "n_outlier_channels": 8},
        {"pre_rope": True},
        {"n_outlier_channels": 64},
    ):
        with pytest.raises(ValueError, match="[a-z]{3}"):
            kvcache.TurboQuantKVCache(**{"head_dim": 64, **wrong})
    cache = kvcache.TurboQuantKVCache(64)
    with pytest.raises(ValueError):
        cache.compress(normals(1, 2, 10, 32), normals(1, 2, 10, 32))
    compressed = cache.compress(normals(1, 2, 10, 64), normals(1, 2, 10, 64))
    bad = normals(1, 2, 1, 64)
    bad[0, 1, 0, 3] = np.nan
    with pytest.raises(ValueError, match="position 10"):
        compressed.append(bad, bad)


def test_torch_tensors_in_kind():
    torch = pytest.importorskip("torch")
    x = torch.randn(1, 2, 200, 64, dtype=torch.bfloat16)
    cache = kvcache.TurboQuantKVCache(64, bit_width=4)
    compressed = cache.compress(x, x)
    assert cache.decompress_keys(compressed).dtype == torch.bfloat16
    assert cache.attention(x, compressed).shape == x.shape
