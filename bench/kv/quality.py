#!/usr/bin/env python3
"""What compressing the KV cache does to a trained model: perplexity, divergence, retrieval.

  cmake --preset release && cmake --build --preset release --target turboquant_kv
  python3 bench/kv/quality.py build/release/kvcache/libturboquant_kv.so ../shared/lm --windows 40

The model is a folder with config.json, model.safetensors (bf16, Llama's names) and dev tokens:
tokens.npy, or dev.txt and tokenizer.json (needs the package `tokenizers`). The forward pass is
numpy's, in float32; attention is the library's. Without a `step`, the tokens of a window are
appended at once, then all of them ask, so with neither sinks nor tail every full page is quantized
before anybody sees it. With one, so many tokens are appended and ask before the next come, as in
decoding: that is how a tail works.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from dataclasses import dataclass, field

import numpy as np
from kv_library import RAW_BITS, Cache, Library
from qjl import qjl_keys

WINDOW = 2048
COPIED = 256  # tokens of the induction test
NEEDLE, SHOWN = 16, 4  # tokens of the needle, and how many of them are shown again
NEEDLE_DISTANCES = (128, 256, 512, 1024)


@dataclass
class Setting:
    name: str
    keys: dict
    values: dict
    options: dict = field(default_factory=dict)
    step: int = 0  # tokens appended before they ask; 0: all
    bias: float = 0  # all keys get one more vector, this many times as long as their residuals
    qjl_bits: int = 0  # keys pass through the paper's Algorithm 2 first


def coded(key_bits: int, value_bits: int, centre: int = 1, outliers: int = 0) -> tuple[dict, dict]:
    return (
        {"bits": key_bits, "centre": centre, "outliers": outliers},
        {"bits": value_bits, "centre": 0, "outliers": outliers},
    )


def settings(head_dim: int) -> list[Setting]:
    bare = {"sink_tokens": 0, "tail_tokens": 0}
    half = head_dim // 2  # half of the channels at one bit more is half a bit
    raw_keys = {"bits": RAW_BITS, "centre": 0}
    return [
        Setting("4/4", *coded(4, 4), bare),
        Setting("4/4, not centred", *coded(4, 4, centre=0), bare),
        Setting("4/4, pages of 128", *coded(4, 4), {**bare, "page_tokens": 128}),
        Setting("4/4, 4 sinks", *coded(4, 4), {**bare, "sink_tokens": 4}, step=32),
        Setting("4/4, 4 sinks, tail of 64", *coded(4, 4), step=32),
        Setting("4/3", *coded(4, 3), bare),
        Setting("3/3", *coded(3, 3), bare),
        Setting("3/3, 4 sinks, tail of 64", *coded(3, 3), step=32),
        Setting("3.5/3.5", *coded(3, 3, outliers=half), bare),
        Setting("2.5/2.5", *coded(2, 2, outliers=half), bare),
        Setting("2/2", *coded(2, 2), bare),
        Setting("2/2, 4 sinks, tail of 64", *coded(2, 2), step=32),
        Setting("4/half", *coded(4, RAW_BITS), bare),
        Setting("4 with QJL/half", raw_keys, {"bits": RAW_BITS}, bare, qjl_bits=4),
        Setting("4/4, keys + 100", *coded(4, 4), bare, bias=100),
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
            return x * cos + np.concatenate([-x[..., d // 2 :], x[..., : d // 2]], -1) * sin

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

    def _changed_keys(self, layer: int, k: np.ndarray) -> np.ndarray:
        setting = self._setting
        if setting.qjl_bits:
            return qjl_keys(k, setting.qjl_bits)
        if setting.bias:
            direction = np.random.default_rng(layer).standard_normal(k.shape[1:])
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
            residual = np.linalg.norm(k - k.mean(0), axis=-1).mean(0)[:, None]
            return k + (setting.bias * residual * direction).astype(np.float32)
        return k

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        c = self._model.config
        cache = Cache(
            self._library,
            self._setting.keys,
            self._setting.values,
            layers=c["num_hidden_layers"],
            query_heads=c["num_attention_heads"],
            kv_heads=c["num_key_value_heads"],
            key_dim=c["head_dim"],
            value_dim=c["head_dim"],
            **self._setting.options,
        )
        step = self._setting.step or len(ids)

        def attend(layer, q, k, v):
            k = self._changed_keys(layer, k)
            out = []
            for at in range(0, len(q), step):
                cache.append(layer, at, k[at : at + step], v[at : at + step])
                out.append(cache.attend(layer, q[at : at + step]))
            return np.concatenate(out)

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


class Measurement:
    """What one process needs; a test of a number gives a list, one entry a setting."""

    def __init__(self, args: argparse.Namespace):
        model, library = Model(args.model), Library(args.library)
        self.tokens = read_tokens(args.model)
        self.vocabulary = model.config["vocab_size"]
        raw = Setting("half precision", {"bits": RAW_BITS, "centre": 0}, {"bits": RAW_BITS})
        only = args.only.split(";") if args.only else None
        chosen = [s for s in settings(model.config["head_dim"]) if only is None or s.name in only]
        self.runs = {s.name: CachedModel(model, library, s) for s in [raw, *chosen]}

    def text(self, window: int) -> list[tuple]:
        """Loss, divergence from the first setting, rate of the same top token, bytes."""
        ids = self.tokens[window * WINDOW : window * WINDOW + WINDOW + 1]
        reference, rows = None, []
        for run in self.runs.values():
            logs = run.log_probabilities(ids[:-1])
            reference = logs if reference is None else reference
            rows.append(
                (
                    -logs[np.arange(WINDOW), ids[1:]].mean(),
                    (np.exp(reference) * (reference - logs)).sum(1).mean(),
                    (reference.argmax(1) == logs.argmax(1)).mean(),
                    run.allocated,
                    run.half,
                )
            )
        return rows

    def induction(self, seed: int) -> list[tuple]:
        """Loss of the second copy of random tokens."""
        r = np.random.default_rng(seed).integers(1, self.vocabulary, COPIED)
        ids = np.concatenate([[0], r, r])
        second = np.arange(COPIED, 2 * COPIED)
        return [
            (-run.log_probabilities(ids[:-1])[second, ids[second + 1]].mean(),)
            for run in self.runs.values()
        ]

    def needle(self, seed: int) -> list[tuple]:
        """Rate at which the rest of a needle in text is found again, by distance."""
        random = np.random.default_rng(1000 + seed)
        rows: list[list] = [[] for _ in self.runs]
        for distance in NEEDLE_DISTANCES:
            needle = random.integers(1, self.vocabulary, NEEDLE)
            start = random.integers(0, len(self.tokens) - distance)
            between = self.tokens[start : start + distance - NEEDLE]
            ids = np.concatenate([[0], needle, between, needle])
            asked = np.arange(len(ids) - NEEDLE + SHOWN - 1, len(ids) - 1)
            for row, run in zip(rows, self.runs.values()):
                found = run.log_probabilities(ids[:-1])[asked].argmax(1)
                row.append((found == ids[asked + 1]).mean())
        return [tuple(row) for row in rows]


measurement: Measurement


def start(args: argparse.Namespace) -> None:
    global measurement
    measurement = Measurement(args)


def work(task: tuple[str, int]) -> list[tuple]:
    return getattr(measurement, task[0])(task[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library")
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=8, help="of the tests of retrieval")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", help="names of settings, between semicolons")
    args = parser.parse_args()
    start(args)
    count = (len(measurement.tokens) - 1) // WINDOW
    windows = np.linspace(0, count - 1, min(args.windows, count)).astype(int)
    tasks = [("text", int(i)) for i in windows]
    tasks += [(test, i) for test in ("induction", "needle") for i in range(args.repeats)]
    if args.processes > 1:
        with multiprocessing.Pool(args.processes, start, (args,)) as pool:
            answers = pool.map(work, tasks, chunksize=1)
    else:
        answers = [work(task) for task in tasks]
    by_test = {
        test: [np.array(a) for t, a in zip(tasks, answers) if t[0] == test]
        for test in ("text", "induction", "needle")
    }
    texts = np.array(by_test["text"])  # [window][setting][figure]
    induction, needle = (np.mean(by_test[t], 0) for t in ("induction", "needle"))
    means = texts.mean(0)
    base = np.exp(means[0, 0])
    print(f"{len(windows)} windows of {WINDOW} tokens")
    print(
        "| keys/values, bits | perplexity | against half | KL, nats | same top token "
        "| induction | needle at "
        + ", ".join(map(str, NEEDLE_DISTANCES))
        + " | bytes a token | times fewer |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for i, name in enumerate(measurement.runs):
        loss, divergence, same_top, allocated, half = means[i]
        spread = (texts[:, i, 0] - texts[:, 0, 0]).std() / np.sqrt(len(windows))
        found = ", ".join(f"{100 * x:.0f}%" for x in needle[i])
        print(
            f"| {name} | {np.exp(loss):.4f} | {100 * (np.exp(loss) / base - 1):+.2f} "
            f"± {100 * spread:.2f}% | {divergence:.5f} | {100 * same_top:.2f}% "
            f"| {induction[i, 0]:.3f} | {found} | {allocated / WINDOW:.0f} "
            f"| {half / allocated:.2f} |"
        )


if __name__ == "__main__":
    main()
