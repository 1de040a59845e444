"""Attention over the compressed cache on a CUDA device, beside torch's on half precision.

Usage: kv_bench.py [--shapes 8x32k,1x4k] [--bits 44,33] [--nopeers]
       [--parts decode,logits,heads,prefill,append] [--markdown FILE]

Times are medians of CUDA-graph replays; every graph goes over so many copies of its inputs that
they are past the L2 cache several times. All figures of a table are from one run. Needs torch and
turboquant built with CUDA (or TURBOQUANT_KV_LIBRARY, which names a libturboquant_kv.so that is).
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from turboquant.torch import DeviceCache, library


def make_cache(layers, batch, heads, bits, tokens, sinks=4, tail=64):
    """heads: query heads, heads of keys and values, their size; bits: of keys and of values."""
    q_heads, kv_heads, dim = heads
    return DeviceCache(
        library(),
        {"bits": bits[0]},
        {"bits": bits[1]},
        batch,
        sequence_tokens=tokens,
        layers=layers,
        query_heads=q_heads,
        kv_heads=kv_heads,
        key_dim=dim,
        value_dim=dim,
        sink_tokens=sinks,
        tail_tokens=tail,
    )


def graph_time(step, copies, replays=25):
    """Median microseconds of step(i), i over the copies of the inputs."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(copies):
            step(i)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            step(i)
    times = []
    for _ in range(replays + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / copies)
    return statistics.median(times[3:])


def bytes_a_token(kv_heads, dim, bits):
    """Of codes, scales and means."""
    return kv_heads * (dim * sum(bits) / 8 + 4 + 2 * dim / 64)


def copies_for(size):
    return int(max(1, min(48, -(-(300 << 20) // size))))


class Inputs:
    """copies x K and V [batch][kv_heads][tokens][dim] in half precision; the generator makes
    each copy other tokens."""

    def __init__(self, batch, kv_heads, tokens, dim, copies, dtype=torch.float16):
        shape = (batch, kv_heads, tokens, dim)
        self.pairs = [
            tuple(torch.empty(shape, device="cuda", dtype=dtype).normal_() for _ in range(2))
            for _ in range(copies)
        ]


def fill(cache, batch, kv_heads, tokens, dim, like=None):
    for layer in range(cache.config.layers):
        for at in range(0, tokens, 8192):
            n = min(8192, tokens - at)
            if like is not None:
                keys, values = (x[:, :, at : at + n].transpose(1, 2).contiguous() for x in like)
            else:
                shape = (batch, n, kv_heads, dim)
                keys, values = (
                    torch.empty(shape, device="cuda", dtype=torch.float16).normal_()
                    for _ in range(2)
                )
            cache.append_batch(layer, keys, values, range(batch))
    torch.cuda.synchronize()


def sdpa(backend, q, pairs, batch, q_heads, dim):
    def step(i):
        k, v = pairs[i % len(pairs)]
        with sdpa_kernel(backend):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    try:
        return graph_time(step, len(pairs))
    except RuntimeError:
        return float("nan")


def decode(shape, heads, bits_list, rows, peers=True, policy=(4, 64)):
    (batch, tokens), (q_heads, kv_heads, dim) = shape, heads
    q = torch.empty((batch, q_heads, 1, dim), device="cuda", dtype=torch.float16).normal_()
    size = 4 * kv_heads * dim * batch * tokens
    best = float("nan")
    like = None
    if peers:
        inputs = Inputs(batch, kv_heads, tokens, dim, copies_for(size))
        cudnn = sdpa(SDPBackend.CUDNN_ATTENTION, q, inputs.pairs, batch, q_heads, dim)
        flash = sdpa(SDPBackend.FLASH_ATTENTION, q, inputs.pairs, batch, q_heads, dim)
        best = cudnn
        like = inputs.pairs[0]
        with sdpa_kernel(SDPBackend.MATH):
            exact = torch.nn.functional.scaled_dot_product_attention(
                q[:1].float(), *(x[:1].float() for x in like), enable_gqa=True
            )[:, :, 0]
        print(f"{name_of(shape):>8} {q_heads}/{kv_heads}/{dim} fp16: cuDNN {cudnn:8.1f} us "
              f"({size / cudnn / 1e3:.0f} GB/s), flash {flash:8.1f} us", flush=True)
        del inputs
        torch.cuda.empty_cache()
    for bits in bits_list:
        compressed = bytes_a_token(kv_heads, dim, bits) * batch * tokens
        copies = copies_for(compressed)
        cache = make_cache(copies, batch, heads, bits, tokens + 64, *policy)
        fill(cache, batch, kv_heads, tokens, dim, like)
        ours_q = q[:, :, 0].contiguous()
        time = graph_time(lambda i: cache.attend_batch(i, ours_q, range(batch)), copies)
        error = float("nan")
        if peers:
            out = cache.attend_batch(0, ours_q, range(batch))[:1].float()
            error = float((out - exact).norm() / exact.norm())
        rate = compressed / time / 1e3
        print(f"{name_of(shape):>8} {q_heads}/{kv_heads}/{dim} {bits[0]}/{bits[1]} bits: "
              f"{time:8.1f} us, {rate:.0f} GB/s of codes, {best / time:.2f}x cuDNN fp16, "
              f"difference from fp16 {error:.3f}", flush=True)
        rows.append((name_of(shape), f"{q_heads}/{kv_heads}/{dim}", f"{bits[0]}/{bits[1]}", best,
                     time, best / time, rate))
        cache.close()
        del cache
        torch.cuda.empty_cache()


def logits(shape, heads, rows):
    (batch, tokens), (q_heads, kv_heads, dim) = shape, heads
    times = {}
    for dtype in (torch.float32, torch.float16):
        size = dtype.itemsize * kv_heads * dim * batch * tokens
        copies = copies_for(size)
        keys = [
            torch.empty((batch, kv_heads, tokens, dim), device="cuda", dtype=dtype).normal_()
            for _ in range(copies)
        ]
        q = torch.empty(
            (batch, kv_heads, q_heads // kv_heads, dim), device="cuda", dtype=dtype
        ).normal_()
        out = torch.empty(
            (batch, kv_heads, q_heads // kv_heads, tokens), device="cuda", dtype=dtype
        )
        times[dtype] = graph_time(
            lambda i: torch.matmul(q, keys[i].transpose(2, 3), out=out), copies
        )
        del keys, q, out
        torch.cuda.empty_cache()
    size = kv_heads * (dim / 2 + 2 + dim / 32) * batch * tokens
    copies = copies_for(size)
    cache = make_cache(copies, batch, heads, (4, 2), tokens + 64, 0, 0)
    fill(cache, batch, kv_heads, tokens, dim)
    q = torch.empty((batch, q_heads, dim), device="cuda", dtype=torch.float16).normal_()
    scores = torch.empty((batch, q_heads, tokens), device="cuda", dtype=torch.float16)
    time = graph_time(lambda i: cache.scores_batch(i, q, range(batch), scores), copies)
    cache.close()
    fp32, fp16 = times[torch.float32], times[torch.float16]
    print(f"{name_of(shape):>8} logits: fp32 {fp32:.1f} us, fp16 {fp16:.1f} us, 4 bits "
          f"{time:.1f} us: {fp32 / time:.1f}x fp32, {fp16 / time:.2f}x fp16", flush=True)
    rows.append((name_of(shape), fp32, fp16, time, fp32 / time, fp16 / time))


def appends(batch, heads, bits):
    q_heads, kv_heads, dim = heads
    tokens = 16384
    cache = make_cache(1, batch, heads, bits, 2 * tokens)
    shape = (batch, tokens // 2, kv_heads, dim)
    keys, values = (
        torch.empty(shape, device="cuda", dtype=torch.float16).normal_() for _ in range(2)
    )
    cache.append_batch(0, keys, values, range(batch))
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    cache.append_batch(0, keys, values, range(batch))
    end.record()
    end.synchronize()
    time = start.elapsed_time(end) * 1000
    print(f"append of {batch} x {tokens // 2} tokens, {kv_heads} heads of {dim}, {bits}: "
          f"{time:.0f} us, {2 * 2 * keys.numel() / time / 1e3:.0f} GB/s of halves", flush=True)
    cache.close()


def prefill(history, chunk, heads, bits, rows):
    """A chunk of a prompt against the tokens before it, and itself, one sequence."""
    q_heads, kv_heads, dim = heads
    cache = make_cache(1, 1, heads, bits, history + chunk + 64)
    fill(cache, 1, kv_heads, history + chunk, dim)
    q = torch.empty((chunk, q_heads, dim), device="cuda", dtype=torch.float16).normal_()
    cache.attend_batch(0, q, [0])  # takes the memory that so many queries need
    ours = graph_time(lambda i: cache.attend_batch(0, q, [0]), 1)
    cache.close()
    k, v = Inputs(1, kv_heads, history + chunk, dim, 1).pairs[0]
    turned = q.transpose(0, 1)[None].contiguous()
    times = {}
    for name, backend in (
        ("cuDNN", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
    ):
        # Without the mask, which is a small part of the work behind a long history.
        times[name] = sdpa(backend, turned, [(k, v)], 1, q_heads, dim)
    flops = 4 * q_heads * dim * chunk * (history + chunk / 2)
    print(f"prefill of {chunk} behind {history // 1024}k, {bits[0]}/{bits[1]} bits: {ours:.0f} us, "
          f"{flops / ours * 1e-6:.0f} TFLOPS, fp16 cuDNN {times['cuDNN']:.0f} us, "
          f"flash {times['flash']:.0f} us", flush=True)
    rows.append((history, chunk, ours, times["cuDNN"], times["flash"]))


def name_of(shape):
    batch, tokens = shape
    return f"{batch}x{tokens // 1024}k"


def shape_of(name):
    batch, tokens = name.split("x")
    return int(batch), int(tokens.rstrip("k")) * 1024


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="1x4k,1x32k,8x4k,8x32k,8x128k,32x32k")
    parser.add_argument("--bits", default="44,33")
    parser.add_argument("--parts", default="decode,logits,heads,prefill,append")
    parser.add_argument("--markdown")
    parser.add_argument("--nopeers", action="store_true", help="ours alone, for tuning")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    parts = args.parts.split(",")
    bits = [(int(b[0]), int(b[1])) for b in args.bits.split(",")]
    shapes = [shape_of(name) for name in args.shapes.split(",")]
    name = torch.cuda.get_device_name()
    x = torch.empty(1 << 30, device="cuda", dtype=torch.float32).normal_()
    read = x.numel() * 4 / graph_time(lambda i: torch.sum(x), 1) / 1e3
    del x
    torch.cuda.empty_cache()
    print(f"{name}, torch {torch.__version__}, reading {read:.0f} GB/s (torch.sum)", flush=True)
    rows, logit_rows, head_rows, prefill_rows = [], [], [], []
    if "decode" in parts:
        for shape in shapes:
            decode(shape, (32, 8, 128), bits, rows, not args.nopeers)
    if "logits" in parts:
        for shape in shapes:
            logits(shape, (32, 8, 128), logit_rows)
    if "heads" in parts:
        for heads in ((32, 8, 64), (32, 8, 256), (8, 8, 128), (64, 8, 128), (128, 8, 128)):
            decode((8, 32768), heads, [(4, 4)], head_rows)
    if "prefill" in parts:
        for history, chunk in ((8192, 512), (32768, 512), (32768, 2048), (131072, 512)):
            prefill(history, chunk, (32, 8, 128), (4, 4), prefill_rows)
    if "append" in parts:
        appends(8, (32, 8, 128), (4, 4))
    if args.markdown:
        with open(args.markdown, "w") as out:
            out.write(f"{name}, torch {torch.__version__}; reading {read:.0f} GB/s ")
            out.write("(torch.sum).\n\n")
            out.write("| batch x context | q/kv heads, size | K/V bits | cuDNN fp16 us | us | "
                      "times faster | GB/s of codes | of reading |\n|-|-|-|-|-|-|-|-|\n")
            for r in rows + head_rows:
                out.write(f"| {r[0]} | {r[1]} | {r[2]} | {r[3]:.1f} | {r[4]:.1f} | {r[5]:.2f} | "
                          f"{r[6]:.0f} | {r[6] / read:.0%} |\n")
            out.write("\n| batch x context | fp32 matmul us | fp16 matmul us | 4 bits us | "
                      "times fp32 | times fp16 |\n|-|-|-|-|-|-|\n")
            for r in logit_rows:
                out.write(f"| {r[0]} | {r[1]:.1f} | {r[2]:.1f} | {r[3]:.1f} | {r[4]:.1f} | "
                          f"{r[5]:.2f} |\n")
            out.write("\n| queries | 4/4 us | cuDNN fp16 us | flash fp16 us |\n|-|-|-|-|\n")
            for r in prefill_rows:
                out.write(f"| {r[1]} behind {r[0] // 1024}k | {r[2]:.0f} | {r[3]:.0f} | "
                          f"{r[4]:.0f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
