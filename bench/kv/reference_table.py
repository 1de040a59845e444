"""The table of turboquant-torch's page, for its version 0.4.0 and for ours, on the same keys.

  python3 -m venv build/reference
  build/reference/bin/pip install turboquant-torch==0.4.0 tokenizers
  build/reference/bin/python bench/kv/reference_table.py \
    build/release/kvcache/libturboquant_kv.so ../shared/lm

Keys, values and queries of a model's layers over windows of held-out text; no tokens stay raw but
those behind the last full page. Key MSE: per coordinate. Score MSE: of the causal softmax's
weights, per (query, visible token), with the model's own queries; logit MSE: of what goes into the
softmax. Bytes: what each allocates, for the reference the tensors that its result holds.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from kv_library import Cache, Library, side
from quality import WINDOW, Model, read_tokens
from turboquant import TurboQuantKVCache


def capture(model: Model, ids: np.ndarray) -> list[tuple]:
    """(q, k, v) of each layer, [tokens][heads][d]."""
    layers = []

    def attend(layer, q, k, v):
        layers.append((q, k, v))
        group = q.shape[1] // k.shape[1]
        hidden = ~np.tri(len(q), dtype=bool)
        out = np.empty_like(q)
        for h in range(q.shape[1]):
            scores = q[:, h] @ k[:, h // group].T / np.float32(np.sqrt(q.shape[2]))
            scores[hidden] = -np.inf
            scores = np.exp(scores - scores.max(1, keepdims=True))
            out[:, h] = scores / scores.sum(1, keepdims=True) @ v[:, h // group]
        return out

    model.forward(ids, attend)
    return layers


def held(thing) -> int:
    """Bytes of the tensors in a result, each storage once."""
    seen: dict[int, int] = {}

    def visit(x):
        if isinstance(x, torch.Tensor):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        elif isinstance(x, (tuple, list)):
            for part in x:
                visit(part)
        elif hasattr(x, "__dict__"):
            visit(list(vars(x).values()))

    visit(thing)
    return sum(seen.values())


def reference(bits: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, float]:
    cache = TurboQuantKVCache(head_dim=k.shape[2], bit_width=bits, residual_length=0)
    # Copies: a view of what was given would count the whole of it.
    tensors = [
        torch.from_numpy(np.ascontiguousarray(x.transpose(1, 0, 2)))[None].clone() for x in (k, v)
    ]
    compressed = cache.compress(*tensors)
    seen = [
        f(compressed)[0].numpy().transpose(1, 0, 2)
        for f in (cache.decompress_keys, cache.decompress_values)
    ]
    stated = cache.memory_savings(1, k.shape[1], len(k))[1] * 2**20
    return seen[0], seen[1], held(compressed), stated


def ours(library: Library, bits: int, k: np.ndarray, v: np.ndarray) -> tuple:
    cache = Cache(
        library,
        side(bits, centre=True),
        side(bits),
        layers=1,
        query_heads=k.shape[1],
        kv_heads=k.shape[1],
        key_dim=k.shape[2],
        value_dim=v.shape[2],
        sink_tokens=0,
        tail_tokens=0,
    )
    cache.append(0, 0, k, v)
    keys, values = cache.dequantize()
    allocated = cache.memory().allocated
    cache.close()
    return keys, values, allocated, allocated


def score_errors(q: np.ndarray, k: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """Mean squared errors of weights and of logits."""
    group, visible = q.shape[1] // k.shape[1], np.tri(len(q), dtype=bool)
    weights_error = logits_error = 0.0
    for h in range(q.shape[1]):
        logits = [q[:, h] @ x[:, h // group].T / np.float32(np.sqrt(q.shape[2])) for x in (k, seen)]
        logits_error += float(((logits[0] - logits[1])[visible] ** 2).mean())
        weights = []
        for x in logits:
            x = np.where(visible, x, -np.inf)
            x = np.exp(x - x.max(1, keepdims=True))
            weights.append(x / x.sum(1, keepdims=True))
        weights_error += float(((weights[0] - weights[1])[visible] ** 2).mean())
    return weights_error / q.shape[1], logits_error / q.shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library")
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=WINDOW, help="of a window")
    args = parser.parse_args()
    model, library, tokens = Model(args.model), Library(args.library), read_tokens(args.model)
    n = args.tokens
    windows = np.linspace(0, (len(tokens) - 1) // n - 1, args.windows).astype(int)
    layers = [layer for w in windows for layer in capture(model, tokens[w * n :][:n])]
    half = sum(2 * (k.size + v.size) for _, k, v in layers)
    print(f"{len(windows)} windows of {n} tokens, {half} bytes in half precision")
    print(
        "| bits | | key MSE | value MSE | score MSE | logit MSE | bytes | times fewer than half | "
        "as it says |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for bits in (2, 3, 4):
        for name, system in (
            ("turboquant-torch 0.4.0", reference),
            ("ours", lambda *a: ours(library, *a)),
        ):
            figures, size, stated = [], 0, 0.0
            for q, k, v in layers:
                keys, values, allocated, says = system(bits, k, v)
                figures.append(
                    (
                        ((keys - k) ** 2).mean(),
                        ((values - v) ** 2).mean(),
                        *score_errors(q, k, keys),
                    )
                )
                size, stated = size + allocated, stated + says
            key, value, weights, logits = np.mean(figures, 0)
            print(
                f"| {bits} | {name} | {key:.4f} | {value:.4f} | {weights:.3e} | {logits:.4f} "
                f"| {size} | {half / size:.2f} | {half / stated:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
