"""A GGUF of a Llama model with a byte-level BPE tokenizer, from a folder of transformers'.

  pip install gguf numpy
  python make_gguf.py ../shared/lm lm.gguf [--text text.txt]

Matrices in halves, the rest in float32. --text: dev.txt without its document marks, as
llama-perplexity reads it.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import gguf
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """float32 of a safetensors file in bfloat16."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    found = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        if about["dtype"] != "BF16":
            raise ValueError(f"{name} is {about['dtype']}, and BF16 is what is read here")
        first, last = about["data_offsets"]
        high = np.frombuffer(data[8 + size + first : 8 + size + last], "<u2").astype(np.uint32)
        found[name] = (high << 16).view(np.float32).reshape(about["shape"])
    return found


def pairs_side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """RoPE turns coordinates i and i + d/2 of a head together in transformers, 2i and 2i + 1 here."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def name_of(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in OTHERS:
        return OTHERS[stem] + ".weight"
    _, _, number, rest = stem.split(".", 3)
    return f"blk.{number}.{LAYER[rest]}.weight"


def write_geometry(out: gguf.GGUFWriter, config: dict) -> None:
    out.add_name("test model")
    out.add_vocab_size(config["vocab_size"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_rope_dimension_count(config["head_dim"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def write_tokenizer(out: gguf.GGUFWriter, folder: pathlib.Path, config: dict) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    special = {x["id"]: x["content"] for x in tokenizer["added_tokens"]}
    ids = {**{i: t for t, i in model["vocab"].items()}, **special}
    if sorted(ids) != list(range(config["vocab_size"])):
        raise ValueError("the tokenizer's numbers are not those of the embedding's rows")
    kinds = gguf.TokenType
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([ids[i] for i in range(len(ids))])
    out.add_token_types([kinds.CONTROL if i in special else kinds.NORMAL for i in range(len(ids))])
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(config["eos_token_id"])
    out.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("output")
    parser.add_argument("--text", type=pathlib.Path)
    options = parser.parse_args()

    config = json.loads((options.model / "config.json").read_text())
    if config["model_type"] != "llama":
        raise ValueError(f"a Llama model is what is written here, not {config['model_type']}")
    out = gguf.GGUFWriter(options.output, "llama")
    write_geometry(out, config)
    write_tokenizer(out, options.model, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in tensors(options.model / "model.safetensors").items():
        for part, n in heads.items():
            if part in name:
                weight = pairs_side_by_side(weight, n)
        out.add_tensor(name_of(name), weight.astype(np.float16 if weight.ndim > 1 else np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    if options.text is not None:
        text = (options.model / "dev.txt").read_text(encoding="utf-8")
        options.text.write_text(text.replace("\n<|endoftext|>\n", "\n\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
