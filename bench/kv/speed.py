#!/usr/bin/env python3
"""Attention over the compressed cache against float32 attention by numpy's BLAS, one thread.

  cmake --preset release && cmake --build --preset release --target turboquant_kv
  python3 bench/kv/speed.py build/release/kvcache/libturboquant_kv.so
  python3 bench/kv/speed.py build/release/kvcache/libturboquant_kv.so --prefill 2048

One layer, one sequence. Decoding: one query token over the cache. Prefill: appending all tokens,
and all of them ask, in steps of --step. Systems take turns, the least and the median of the times
are printed, and the ratio of the medians. BLAS keeps keys as
[kv head][token][d], which it likes best.
"""

from __future__ import annotations

import argparse
import functools
import os
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np  # noqa: E402  (after the thread counts are set)
from kv_library import RAW_BITS, Cache, Library  # noqa: E402


def softmax_attention(q, k, v):
    """q [heads][group][d], k and v [heads][n][d]."""
    scores = np.matmul(q, k.transpose(0, 2, 1))
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return np.matmul(scores, v)


def times_of(systems: dict, repetitions: int) -> dict[str, np.ndarray]:
    """Milliseconds; systems take turns."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(repetitions):
        for name, work in systems.items():
            start = time.perf_counter()
            work()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(measured) for name, measured in times.items()}


def shown(times: np.ndarray) -> str:
    return f"{times.min():.2f} / {np.median(times):.2f}"


def one_layer(library: Library, args: argparse.Namespace, key_bits: int, value_bits: int) -> Cache:
    heads, kv_heads = (int(n) for n in args.heads.split(","))
    return Cache(
        library,
        {"bits": key_bits, "centre": int(key_bits != RAW_BITS)},
        {"bits": value_bits},
        layers=1,
        query_heads=heads,
        kv_heads=kv_heads,
        key_dim=args.dim,
        value_dim=args.dim,
    )


def decode(library: Library, args: argparse.Namespace) -> None:
    heads, kv_heads = (int(n) for n in args.heads.split(","))
    d, group = args.dim, heads // kv_heads
    random = np.random.default_rng(1)
    print("| tokens | keys/values, bits | codes | float32, BLAS | times faster | difference |")
    print("|---|---|---|---|---|---|")
    for tokens in (int(n) for n in args.tokens.split(",")):
        k = random.standard_normal((tokens, kv_heads, d), np.float32)
        v = random.standard_normal((tokens, kv_heads, d), np.float32)
        q = random.standard_normal((1, heads, d), np.float32)
        k_blas = np.ascontiguousarray(k.transpose(1, 0, 2))
        v_blas = np.ascontiguousarray(v.transpose(1, 0, 2))
        q_blas = q.reshape(kv_heads, group, d) / np.float32(np.sqrt(d))
        caches = {}
        for bits in args.bits.split(";"):
            key_bits, value_bits = (int(b) for b in bits.split(","))
            cache = one_layer(library, args, key_bits, value_bits)
            cache.append(0, 0, k, v)
            caches[f"{key_bits}/{value_bits}"] = cache
        expected = softmax_attention(q_blas, k_blas, v_blas).reshape(1, heads, d)
        systems = {name: functools.partial(cache.attend, 0, q) for name, cache in caches.items()}
        systems["blas"] = functools.partial(softmax_attention, q_blas, k_blas, v_blas)
        times = times_of(systems, args.repetitions)
        for name, cache in caches.items():
            error = np.linalg.norm(cache.attend(0, q) - expected) / np.linalg.norm(expected)
            ratio = np.median(times["blas"]) / np.median(times[name])
            print(
                f"| {tokens} | {name} | {shown(times[name])} | {shown(times['blas'])} "
                f"| {ratio:.2f} | {100 * error:.1f}% |"
            )
            cache.close()


def prefill(library: Library, args: argparse.Namespace) -> None:
    heads, kv_heads = (int(n) for n in args.heads.split(","))
    d, group, n, step = args.dim, heads // kv_heads, args.prefill, args.step
    random = np.random.default_rng(1)
    k = random.standard_normal((n, kv_heads, d), np.float32)
    v = random.standard_normal((n, kv_heads, d), np.float32)
    q = random.standard_normal((n, heads, d), np.float32)

    def cached(key_bits: int, value_bits: int) -> None:
        cache = one_layer(library, args, key_bits, value_bits)
        for at in range(0, n, step):
            cache.append(0, at, k[at : at + step], v[at : at + step])
            cache.attend(0, q[at : at + step])
        cache.close()

    def blas() -> None:
        """Per step and kv head: its queries over the tokens so far."""
        for at in range(0, n, step):
            end = min(at + step, n)
            hidden = np.tri(end - at, end, at, dtype=bool)
            for h in range(kv_heads):
                rows = q[at:end, h * group : (h + 1) * group].transpose(1, 0, 2)
                scores = np.matmul(rows.reshape(-1, d), k[:end, h].T) * np.float32(d**-0.5)
                scores = np.where(hidden, scores.reshape(group, end - at, end), -np.inf)
                scores -= scores.max(-1, keepdims=True)
                np.exp(scores, out=scores)
                scores /= scores.sum(-1, keepdims=True)
                np.matmul(scores, v[:end, h])

    systems = {
        bits.replace(",", "/"): lambda b=bits: cached(*(int(x) for x in b.split(",")))
        for bits in args.bits.split(";")
    }
    systems["half in the cache"] = lambda: cached(RAW_BITS, RAW_BITS)
    systems["float32, BLAS"] = blas
    times = times_of(systems, args.repetitions)
    print("| prefill of | in steps of | | ms |")
    print("|---|---|---|---|")
    for name in systems:
        print(f"| {n} | {step} | {name} | {shown(times[name])} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library")
    parser.add_argument("--heads", default="32,8", help="query heads, kv heads")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--tokens", default="4096,32768")
    parser.add_argument("--bits", default="4,4;4,3;3,3;2,2")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--prefill", type=int, help="so many tokens, instead of decoding")
    parser.add_argument("--step", type=int, default=512, help="tokens appended before they ask")
    args = parser.parse_args()
    print(f"{args.heads} query and kv heads, d = {args.dim}, one thread, ms: least / median")
    (prefill if args.prefill else decode)(Library(args.library), args)


if __name__ == "__main__":
    main()
