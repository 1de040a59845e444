"""What search_bench is compared with, on the same device: fp16 matrix product and top-k in tiles of
rows, by torch, and faiss's GpuIndexFlat of halves where faiss-gpu is installed. Usage: peers.py
ROWS DIMENSION. Times are CUDA events', medians; of torch, of the best tiling."""

import statistics
import sys

import torch

K = 10
BATCHES = (1, 16, 256, 4096)


def timed(function, repeats):
    for _ in range(2):
        function()
    times = []
    for _ in range(repeats):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def search(rows, queries, tile):
    """Scores and ids of the K best rows of each query."""
    scores, ids = [], []
    for first in range(0, rows.shape[0], tile):
        product = queries @ rows[first : first + tile].T
        best = torch.topk(product, K, dim=1)
        scores.append(best.values)
        ids.append(best.indices + first)
    if len(scores) == 1:
        return scores[0], ids[0]
    all_scores, all_ids = torch.cat(scores, 1), torch.cat(ids, 1)
    best = torch.topk(all_scores, K, dim=1)
    return best.values, all_ids.gather(1, best.indices)


def search_faiss(rows, queries):
    """Times of faiss-gpu by batch; rows and queries are its torch tensors, k and metric ours."""
    try:
        import faiss
        import faiss.contrib.torch_utils  # noqa: F401
    except ImportError as error:
        print(f"faiss-gpu: not here ({error})")
        return
    resources = faiss.StandardGpuResources()
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    index = faiss.GpuIndexFlatIP(resources, rows.shape[1], config)
    for first in range(0, rows.shape[0], 100000):
        index.add(rows[first : first + 100000].float())
    for batch in BATCHES:
        asked = queries[:batch].float().contiguous()
        scores = torch.empty(batch, K, device="cuda")
        ids = torch.empty(batch, K, dtype=torch.int64, device="cuda")
        ms = timed(lambda: index.search(asked, K, scores, ids), 5 if batch > 1000 else 15)
        overlap = "-"
        if batch > 1:
            wanted = search(rows, queries[:batch], 65536)[1]
            same = (ids[:, :, None] == wanted[:, None, :]).any(2).float().mean().item()
            overlap = f"{same:.3f}"
        print(
            f"faiss {faiss.__version__} GpuIndexFlatIP of halves "
            f"{rows.shape[0]} x {rows.shape[1]}, batch {batch:4}: {ms:8.3f} ms "
            f"(the same ids as torch: {overlap})",
            flush=True,
        )


def main():
    n, d = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(1)
    rows = torch.empty(n, d, dtype=torch.float16, device="cuda")
    for first in range(0, n, 100000):
        part = torch.randn(min(100000, n - first), d, device="cuda")
        rows[first : first + 100000] = torch.nn.functional.normalize(part).half()
    queries = torch.nn.functional.normalize(torch.randn(4096, d, device="cuda")).half()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for batch in BATCHES:
        best = None
        for tile in (n, n // 4, n // 16, 65536, 32768, 16384):
            if batch * tile > 2**31:
                continue
            ms = timed(lambda: search(rows, queries[:batch], tile), 5 if batch > 1000 else 15)
            if best is None or ms < best[0]:
                best = (ms, tile)
        print(
            f"torch fp16 {n} x {d}, batch {batch:4}: {best[0]:8.3f} ms (tiles of {best[1]} rows)",
            flush=True,
        )
    search_faiss(rows, queries)


if __name__ == "__main__":
    main()
