"""turboquant.torch: the cache on a CUDA device. Skipped where there is none."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)

from turboquant.kvcache import Cache  # noqa: E402
from turboquant.torch import DeviceCache, library, side  # noqa: E402

GEOMETRY = {"layers": 2, "query_heads": 8, "kv_heads": 2, "key_dim": 128, "value_dim": 128}


def both(sequences=2, **options):
    sides = side(4, centre=True), side(3)
    host = Cache(library(), *sides, sequences, **GEOMETRY, **options)
    device = DeviceCache(
        library(), *sides, sequences, sequence_tokens=2048, **GEOMETRY, **options
    )
    return host, device


def fill(host, device, n, dtype, seed=0):
    torch.manual_seed(seed)
    for layer in range(2):
        keys, values = (torch.randn(2, n, 2, 128).to(dtype) for _ in range(2))
        for sequence in range(2):
            host.append(
                layer,
                host.length(layer, sequence),
                keys[sequence].float().numpy(),
                values[sequence].float().numpy(),
                sequence,
            )
        device.append_batch(layer, keys.cuda(), values.cuda(), [0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_answers_are_those_of_the_host(dtype):
    host, device = both()
    fill(host, device, 700, dtype)
    q = torch.randn(2 * 3, 8, 128).to(dtype)
    rough = {torch.float32: 5e-3, torch.float16: 6e-3, torch.bfloat16: 2e-2}[dtype]
    for layer in range(2):
        wanted = host.attend_batch(layer, q.float().numpy(), [0, 1])
        got = device.attend_batch(layer, q.cuda(), [0, 1])
        assert got.dtype == dtype
        assert np.abs(got.float().cpu().numpy() - wanted).max() < rough
    assert device.length(0, 1) == 700
    keys, _ = device.dequantize(1, 1)
    assert (keys == host.dequantize(1, 1)[0]).all()


def test_a_graph_is_replayed():
    host, device = both()
    fill(host, device, 100, torch.float16)
    for sequence in range(2):
        device.reserve(sequence, 128)
    keys, values = (torch.zeros(2, 1, 2, 128, dtype=torch.float16).cuda() for _ in range(2))
    q = torch.zeros(2, 8, 128, dtype=torch.float16).cuda()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.append_batch(0, keys, values, [0, 1])
        out = device.attend_batch(0, q, [0, 1])
    for step in range(100):
        k, v = (torch.randn(2, 1, 2, 128).half() for _ in range(2))
        asked = torch.randn(2, 8, 128).half()
        keys.copy_(k)
        values.copy_(v)
        q.copy_(asked)
        graph.replay()
        for s in range(2):
            host.append(0, host.length(0, s), k[s].float().numpy(), v[s].float().numpy(), s)
        if step % 25 == 0:
            wanted = host.attend_batch(0, asked.float().numpy(), [0, 1])
            assert np.abs(out.float().cpu().numpy() - wanted).max() < 6e-3
    device.refresh()
    assert device.length(0, 0) == 200


def test_a_model_generates_with_codes_on_its_device():
    transformers = pytest.importorskip("transformers")
    from turboquant.kvcache import TurboQuantCache

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval().cuda()
    tokens = torch.randint(300, (2, 200)).cuda()
    texts, logits = [], []
    for device_tokens in (0, 1024):
        cache = TurboQuantCache.from_model(model, bit_width=4, device_tokens=device_tokens)
        with torch.no_grad():
            logits.append(model(tokens, past_key_values=cache).logits)
        cache = TurboQuantCache.from_model(model, bit_width=4, device_tokens=device_tokens)
        texts.append(
            model.generate(tokens, past_key_values=cache, max_new_tokens=80, do_sample=False)
        )
    assert (logits[0] - logits[1]).norm() < 1e-2 * logits[0].norm()
    assert (texts[0] == texts[1]).float().mean() > 0.9


def test_wrong_tensors_are_refused():
    _, device = both()
    good = torch.zeros(2, 3, 2, 128).cuda()
    with pytest.raises(ValueError, match="keys must be"):
        device.append_batch(0, good[..., :64], good, [0, 1])
    with pytest.raises(ValueError, match="must be on"):
        device.append_batch(0, good.cpu(), good.cpu(), [0, 1])
    with pytest.raises(ValueError, match="float32"):
        device.append_batch(0, good.double(), good.double(), [0, 1])
    with pytest.raises(IndexError):
        device.append_batch(5, good, good, [0, 1])
    with pytest.raises(MemoryError):
        DeviceCache(
            library(), side(4), side(4), 4096, sequence_tokens=1 << 20, **GEOMETRY
        )
