"""turboquant.cuda: the flat index on a CUDA device. Most of it is skipped where there is none."""

import subprocess
import sys
import threading

import numpy as np
import pytest

import turboquant
from turboquant import cuda

needs_device = pytest.mark.skipif(
    not cuda.is_available(), reason="no CUDA device on this machine, or no CUDA in this build"
)
KINDS = [("ip", "tq"), ("l2", "tq"), ("cosine", "tq"), ("ip", "qjl"), ("l2", "mse"), ("ip", "t")]


def rows(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def both(d=96, bits=4, n=2000, **options):
    cpu = turboquant.IndexTurboQuant(d, bits, **options)
    gpu = turboquant.GpuIndexTurboQuant(d, bits, **options)
    x = rows(n, d)
    cpu.add(x)
    gpu.add(x)
    return cpu, gpu


def same(results, wanted):
    for got, want in zip(results, wanted):
        if hasattr(got, "cpu"):
            got = got.cpu().numpy()
        elif hasattr(got, "get"):
            got = got.get()
        assert got.dtype == want.dtype and got.shape == want.shape
        assert got.tobytes() == want.tobytes()


@pytest.mark.skipif(cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_or_a_device_a_sentence_says_so():
    with pytest.raises(RuntimeError, match="built without CUDA|CUDA: "):
        turboquant.GpuIndexTurboQuant(64)
    with pytest.raises(RuntimeError, match="built without CUDA|CUDA: "):
        cuda.GpuIndexTurboQuant.from_cpu(turboquant.IndexTurboQuant(64))
    assert cuda.device_count() == 0


def test_torch_is_not_imported():
    code = "import sys, turboquant.cuda; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_device
@pytest.mark.parametrize("metric, estimator", KINDS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codes_and_answers_are_those_of_the_cpu(bits, metric, estimator):
    cpu, gpu = both(bits=bits, metric=metric, estimator=estimator)
    assert (gpu.codes == cpu.codes).all()
    assert (gpu.ntotal, len(gpu), gpu.d, gpu.metric, gpu.name) == (2000, 2000, 96, metric, cpu.name)
    queries = rows(33, 96, 1)
    same(gpu.search(queries, 10), cpu.search(queries, 10))
    same(gpu.search(queries[0], 5), cpu.search(queries[0], 5))
    same(gpu.search(queries.tolist(), 3), cpu.search(queries, 3))
    assert (gpu.reconstruct(7) == cpu.reconstruct(7)).all()


@needs_device
def test_copies_both_ways():
    cpu, _ = both(centre=True, bits=2)
    gpu = cuda.GpuIndexTurboQuant.from_cpu(cpu)
    queries = rows(5, 96, 2)
    same(gpu.search(queries, 4), cpu.search(queries, 4))
    back = gpu.to_cpu()
    assert isinstance(back, turboquant.IndexTurboQuant)
    assert back.to_bytes() == cpu.to_bytes()
    with pytest.raises(TypeError, match="IndexTurboQuant"):
        cuda.GpuIndexTurboQuant.from_cpu(turboquant.index_factory(8, "IDMap2,TQ4"))


@needs_device
def test_selectors_removal_and_reset():
    cpu, gpu = both()
    queries = rows(9, 96, 3)
    chosen = np.arange(0, 2000, 7)
    mask = np.zeros(2000, bool)
    mask[chosen] = True
    for selector in (chosen, mask, turboquant.IDSelector(chosen)):
        same(gpu.search(queries, 6, selector=selector), cpu.search(queries, 6, selector=chosen))
    assert gpu.remove_ids(chosen) == cpu.remove_ids(chosen) == len(chosen)
    same(gpu.search(queries, 6), cpu.search(queries, 6))
    gpu.reset()
    assert gpu.ntotal == 0
    assert (gpu.search(queries, 2)[1] == -1).all()


@needs_device
def test_torch_tensors_stay_on_the_device():
    torch = pytest.importorskip("torch")
    cpu, _ = both()
    gpu = turboquant.GpuIndexTurboQuant(96, 4)
    x = torch.from_numpy(rows(2000, 96)).cuda()
    gpu.add(x[:1200])
    gpu.add(x[1200:].t().contiguous().t())  # in another layout
    assert (gpu.codes == cpu.codes).all()
    queries = torch.from_numpy(rows(17, 96, 4)).cuda()
    scores, ids = gpu.search(queries, 10)
    assert scores.is_cuda and ids.is_cuda and ids.dtype == torch.int64
    same((scores, ids), cpu.search(queries.cpu().numpy(), 10))
    halves = queries.half()
    same(gpu.search(halves, 10), cpu.search(halves.float().cpu().numpy(), 10))
    same(gpu.search(queries[0], 10), cpu.search(queries[0].cpu().numpy(), 10))
    same(gpu.search(queries.cpu(), 10), cpu.search(queries.cpu().numpy(), 10))


@needs_device
def test_the_stream_of_the_caller_is_followed():
    torch = pytest.importorskip("torch")
    cpu, gpu = both()
    wanted = rows(64, 96, 5)
    for explicit in (False, True):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            queries = torch.zeros(64, 96, device="cuda")
            torch.cuda._sleep(50_000_000)  # the queries are not there yet when search is called
            queries.copy_(torch.from_numpy(wanted), non_blocking=True)
            if not explicit:
                same(gpu.search(queries, 10), cpu.search(wanted, 10))
        if explicit:
            same(gpu.search(queries, 10, stream=stream), cpu.search(wanted, 10))


@needs_device
def test_cupy_and_the_array_interface():
    cupy = pytest.importorskip("cupy")
    cpu, gpu = both()
    queries = rows(12, 96, 6)
    on_device = cupy.asarray(queries)
    scores, ids = gpu.search(on_device, 10)
    assert isinstance(scores, cupy.ndarray) and isinstance(ids, cupy.ndarray)
    same((scores, ids), cpu.search(queries, 10))

    class Interface:
        __cuda_array_interface__ = on_device.__cuda_array_interface__

    same(gpu.search(Interface(), 10), cpu.search(queries, 10))

    class Exporter:  # DLPack alone
        def __dlpack__(self, **options):
            return on_device.__dlpack__(**options)

        def __dlpack_device__(self):
            return on_device.__dlpack_device__()

    same(gpu.search(Exporter(), 10), cpu.search(queries, 10))

    class Doubles:
        __cuda_array_interface__ = on_device.astype(cupy.float64).__cuda_array_interface__

    with pytest.raises(TypeError, match="float32"):
        gpu.search(Doubles(), 10)


@needs_device
def test_wrong_calls_are_refused_and_change_nothing():
    cpu, gpu = both()
    with pytest.raises(ValueError, match="shape"):
        gpu.add(rows(3, 95))
    bad = rows(3, 96)
    bad[1, 4] = np.nan
    with pytest.raises(ValueError, match="row 1"):
        gpu.add(bad)
    with pytest.raises(ValueError, match="query 1"):
        gpu.search(bad, 3)
    for k in (0, 2049):
        with pytest.raises(ValueError, match="2048"):
            gpu.search(bad, k)
    with pytest.raises(IndexError):
        gpu.reconstruct(2000)
    with pytest.raises(RuntimeError, match="CUDA: cudaSetDevice.*cudaErrorInvalidDevice"):
        turboquant.GpuIndexTurboQuant(64, device=1000)
    with pytest.raises(MemoryError, match="bytes"):
        gpu.reserve(4_000_000_000_000)
    same(gpu.search(rows(4, 96, 7), 10), cpu.search(rows(4, 96, 7), 10))


@needs_device
def test_threads_take_turns():
    cpu, gpu = both()
    queries = rows(40, 96, 8)
    wanted = cpu.search(queries, 10)
    failed = []

    def work():
        try:
            for _ in range(20):
                same(gpu.search(queries, 10), wanted)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
