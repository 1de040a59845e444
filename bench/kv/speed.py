#!/usr/bin/env python3
"""Decode attention over the compressed cache against float32 attention by numpy's BLAS, one thread.

  cmake --preset release && cmake --build --preset release --target turboquant_kv
  python3 bench/kv/speed.py build/release/kvcache/libturboquant_kv.so

One layer, one sequence, one query token; systems take turns, the least and the median of the times
are printed, and the ratio of the medians. BLAS keeps keys as [kv head][token][d], which it likes best.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np  # noqa: E402  (after the thread counts are set)
from kv_library import Cache, Library  # noqa: E402


def softmax_attention(q, k, v):
    """q [heads][group][d], k and v [heads][n][d]."""
    scores = np.matmul(q, k.transpose(0, 2, 1))
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return np.matmul(scores, v)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--heads", default="32,8", help="query heads, kv heads")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--tokens", default="4096,32768")
    parser.add_argument("--bits", default="4,4;4,3;3,3;2,2")
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()
    library = Library(args.library)
    heads, kv_heads = (int(n) for n in args.heads.split(","))
    d, group = args.dim, heads // kv_heads
    random = np.random.default_rng(1)
    print(f"{heads} query heads, {kv_heads} kv heads, d = {d}, one thread, ms: least / median")
    print("| tokens | keys/values, bits | codes | float32, BLAS | times faster | difference |")
    print("|---|---|---|---|---|---|")
    for tokens in (int(n) for n in args.tokens.split(",")):
        k = random.standard_normal((tokens, kv_heads, d), np.float32)
        v = random.standard_normal((tokens, kv_heads, d), np.float32)
        q = random.standard_normal((1, heads, d), np.float32)
        k_blas = np.ascontiguousarray(k.transpose(1, 0, 2))
        v_blas = np.ascontiguousarray(v.transpose(1, 0, 2))
        q_blas = q.reshape(kv_heads, group, d) / np.float32(np.sqrt(d))
        caches = []
        for bits in args.bits.split(";"):
            key_bits, value_bits = (int(b) for b in bits.split(","))
            cache = Cache(library, {"bits": key_bits}, {"bits": value_bits}, layers=1,
                          query_heads=heads, kv_heads=kv_heads, key_dim=d, value_dim=d)
            cache.append(0, 0, k, v)
            caches.append((f"{key_bits}/{value_bits}", cache))
        expected = softmax_attention(q_blas, k_blas, v_blas).reshape(1, heads, d)
        times: dict[str, list[float]] = {name: [] for name, _ in caches}
        times["blas"] = []
        for _ in range(args.repetitions):
            for name, cache in caches:
                start = time.perf_counter()
                cache.attend(0, q)
                times[name].append(1e3 * (time.perf_counter() - start))
            start = time.perf_counter()
            softmax_attention(q_blas, k_blas, v_blas)
            times["blas"].append(1e3 * (time.perf_counter() - start))
        blas = f"{min(times['blas']):.2f} / {np.median(times['blas']):.2f}"
        for name, cache in caches:
            error = np.linalg.norm(cache.attend(0, q) - expected) / np.linalg.norm(expected)
            ratio = np.median(times["blas"]) / np.median(times[name])
            print(f"| {tokens} | {name} | {min(times[name]):.2f} / {np.median(times[name]):.2f} "
                  f"| {blas} | {ratio:.2f} | {100 * error:.1f}% |")
            cache.close()


if __name__ == "__main__":
    main()
