#!/usr/bin/env python3
"""What compressing the KV cache does to a trained model: perplexity, divergence, same top token.

  cmake --preset release && cmake --build --preset release --target turboquant_kv
  python3 bench/kv/quality.py build/release/kvcache/libturboquant_kv.so ../shared/lm --windows 40

The model is a folder with config.json, model.safetensors (bf16, Llama's names) and dev tokens:
tokens.npy, or dev.txt and tokenizer.json (needs the package `tokenizers`). The forward pass is
numpy's, in float32; attention is the library's. Tokens of a window are appended at once, then all of
them ask, so with neither sinks nor tail every full page is quantized before anybody sees it.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field

import numpy as np
from kv_library import RAW_BITS, Cache, Library

WINDOW = 2048


@dataclass
class Setting:
    name: str
    keys: dict
    values: dict
    options: dict = field(default_factory=dict)


def coded(key_bits: int, value_bits: int, centre: int = 1, outliers: int = 0) -> tuple[dict, dict]:
    return ({"bits": key_bits, "centre": centre, "outliers": outliers},
            {"bits": value_bits, "centre": 0, "outliers": outliers})


def settings(head_dim: int) -> list[Setting]:
    bare = {"sink_tokens": 0, "tail_tokens": 0}
    quarter = head_dim // 2  # half of the channels at one bit more is half a bit
    return [
        Setting("4/4", *coded(4, 4), bare),
        Setting("4/4, not centred", *coded(4, 4, centre=0), bare),
        Setting("4/4, pages of 128", *coded(4, 4), {**bare, "page_tokens": 128}),
        Setting("4/4, default sinks and tail", *coded(4, 4)),
        Setting("4/3", *coded(4, 3), bare),
        Setting("3/3", *coded(3, 3), bare),
        Setting("3.5/3.5", *coded(3, 3, outliers=quarter), bare),
        Setting("2.5/2.5", *coded(2, 2, outliers=quarter), bare),
    ]


class Model:
    """Llama in float32."""

    def __init__(self, folder: str):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        with open(os.path.join(folder, "model.safetensors"), "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            raw = file.read()
        self.weights = {}
        for name, meta in header.items():
            if name == "__metadata__":
                continue
            if meta["dtype"] != "BF16":
                raise ValueError(f"{name} has type {meta['dtype']}, not BF16")
            begin, end = meta["data_offsets"]
            upper = np.frombuffer(raw[begin:end], "<u2").astype(np.uint32) << 16
            self.weights[name] = upper.view(np.float32).reshape(meta["shape"])

    def forward(self, ids: np.ndarray, attend) -> np.ndarray:
        """Logits [T][vocabulary]. attend(layer, q, k, v): [T][heads][d] each, after RoPE."""
        c, w = self.config, self.weights
        t, d = len(ids), c["head_dim"]
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        frequency = c["rope_theta"] ** (-np.arange(0, d, 2) / d)
        angle = np.outer(np.arange(t), frequency)
        angle = np.concatenate([angle, angle], 1).astype(np.float32)[:, None, :]
        cos, sin = np.cos(angle), np.sin(angle)

        def norm(x, weight):
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[weight]

        def rope(x):
            return x * cos + np.concatenate([-x[..., d // 2:], x[..., :d // 2]], -1) * sin

        x = w["model.embed_tokens.weight"][ids]
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            y = norm(x, p + "input_layernorm.weight")
            q = rope((y @ w[p + "self_attn.q_proj.weight"].T).reshape(t, heads, d))
            k = rope((y @ w[p + "self_attn.k_proj.weight"].T).reshape(t, kv_heads, d))
            v = (y @ w[p + "self_attn.v_proj.weight"].T).reshape(t, kv_heads, d)
            x = x + attend(i, q, k, v).reshape(t, -1) @ w[p + "self_attn.o_proj.weight"].T
            y = norm(x, p + "post_attention_layernorm.weight")
            gate = y @ w[p + "mlp.gate_proj.weight"].T
            up = y @ w[p + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
        return norm(x, "model.norm.weight") @ w["model.embed_tokens.weight"].T


class CachedModel:
    """The model with a cache of a setting in the place of its own."""

    def __init__(self, model: Model, library: Library, setting: Setting):
        self._model, self._library, self._setting = model, library, setting
        self.allocated = self.half = 0

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        c = self._model.config
        cache = Cache(self._library, self._setting.keys, self._setting.values,
                      layers=c["num_hidden_layers"], query_heads=c["num_attention_heads"],
                      kv_heads=c["num_key_value_heads"], key_dim=c["head_dim"],
                      value_dim=c["head_dim"], **self._setting.options)

        def attend(layer, q, k, v):
            cache.append(layer, 0, k, v)
            return cache.attend(layer, q)

        try:
            logits = self._model.forward(ids, attend)
            memory = cache.memory()
            self.allocated, self.half = memory.allocated, memory.half
        finally:
            cache.close()
        logits -= logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def read_tokens(folder: str) -> np.ndarray:
    ready = os.path.join(folder, "tokens.npy")
    if os.path.exists(ready):
        return np.load(ready).astype(np.int64)
    from tokenizers import Tokenizer  # only here: not everybody has it

    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    with open(os.path.join(folder, "dev.txt"), encoding="utf-8", newline="") as file:
        documents = file.read().split("\n<|endoftext|>\n")
    ids: list[int] = []
    for document in documents:
        if document.strip():
            ids += tokenizer.encode(document, add_special_tokens=False).ids + [end]
    return np.array(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--only", help="settings whose names contain this")
    args = parser.parse_args()
    model, library = Model(args.model), Library(args.library)
    tokens = read_tokens(args.model)
    count = (len(tokens) - 1) // WINDOW
    windows = np.linspace(0, count - 1, min(args.windows, count)).astype(int)
    raw = Setting("half precision", {"bits": RAW_BITS, "centre": 0}, {"bits": RAW_BITS})
    chosen = [s for s in settings(model.config["head_dim"])
              if args.only is None or args.only in s.name]
    runs = {s.name: CachedModel(model, library, s) for s in [raw, *chosen]}
    losses = {name: [] for name in runs}
    divergence = {name: [] for name in runs}
    same_top = {name: [] for name in runs}
    for i in windows:
        ids = tokens[i * WINDOW:i * WINDOW + WINDOW + 1]
        reference = None
        for name, run in runs.items():
            logs = run.log_probabilities(ids[:-1])
            reference = logs if reference is None else reference
            losses[name].append(-logs[np.arange(WINDOW), ids[1:]].mean())
            divergence[name].append((np.exp(reference) * (reference - logs)).sum(1).mean())
            same_top[name].append((reference.argmax(1) == logs.argmax(1)).mean())
    random = np.random.default_rng(1)
    induction = {name: [] for name in runs}
    for _ in range(8):
        r = random.integers(1, model.config["vocab_size"], 256)
        ids = np.concatenate([[0], r, r])
        for name, run in runs.items():
            logs = run.log_probabilities(ids[:-1])
            induction[name].append(-logs[np.arange(256, 512), ids[257:]].mean())

    base = np.exp(np.mean(losses["half precision"]))
    print(f"{len(windows)} windows of {WINDOW} tokens")
    print("| keys/values, bits | perplexity | against half | KL, nats | same top token "
          "| induction, loss of the second copy | bytes a token | times fewer |")
    print("|---|---|---|---|---|---|---|---|")
    for name in runs:
        run = runs[name]
        # Of the last, short text the memory is mostly raw; measure a full window.
        run.log_probabilities(tokens[:WINDOW])
        perplexity = np.exp(np.mean(losses[name]))
        print(f"| {name} | {perplexity:.4f} | {100 * (perplexity / base - 1):+.2f}% "
              f"| {np.mean(divergence[name]):.5f} | {100 * np.mean(same_top[name]):.2f}% "
              f"| {np.mean(induction[name]):.3f} | {run.allocated / WINDOW:.0f} "
              f"| {run.half / run.allocated:.2f} |")


if __name__ == "__main__":
    main()
