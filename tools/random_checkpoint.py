"""Writes a random Qwen3 checkpoint in the shape of a published one, for full-size runs without a download.

    python tools/random_checkpoint.py 0.6b /tmp/qwen3-0.6b

Weights are normal with std 0.02 (norms near 1), bf16, one layer's at a time in shards, so that memory stays small.
The tokenizer is not written: use `--tokens`.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

# layers, hidden, intermediate, heads, kv heads, tied
SHAPES = {
    "0.6b": (28, 1024, 3072, 16, 8, True),
    "1.7b": (28, 2048, 6144, 16, 8, True),
    "4b": (36, 2560, 9728, 32, 8, True),
    "8b": (36, 4096, 12288, 32, 8, False),
}
HEAD_DIM = 128
VOCAB = 151936


def config(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, tied: bool) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": 40960,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB,
    }


def normal(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * 0.02).to(torch.bfloat16)


def norm(width: int) -> torch.Tensor:
    return (1 + 0.1 * torch.randn(width)).to(torch.bfloat16)


def layer_weights(layer: int, hidden: int, intermediate: int, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{layer}."
    weights = {
        "self_attn.q_proj": normal(heads * HEAD_DIM, hidden),
        "self_attn.k_proj": normal(kv_heads * HEAD_DIM, hidden),
        "self_attn.v_proj": normal(kv_heads * HEAD_DIM, hidden),
        "self_attn.o_proj": normal(hidden, heads * HEAD_DIM),
        "self_attn.q_norm": norm(HEAD_DIM),
        "self_attn.k_norm": norm(HEAD_DIM),
        "mlp.gate_proj": normal(intermediate, hidden),
        "mlp.up_proj": normal(intermediate, hidden),
        "mlp.down_proj": normal(hidden, intermediate),
        "input_layernorm": norm(hidden),
        "post_attention_layernorm": norm(hidden),
    }
    return {f"{prefix}{name}.weight": tensor for name, tensor in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the published model")
    args = parser.parse_args()
    layers, hidden, intermediate, heads, kv_heads, tied = SHAPES[args.shape]
    layers = args.layers or layers

    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, args.out / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    ends = {"model.embed_tokens.weight": normal(VOCAB, hidden), "model.norm.weight": norm(hidden)}
    if not tied:
        ends["lm_head.weight"] = normal(VOCAB, hidden)
    write("model-ends.safetensors", ends)
    for layer in range(layers):
        write(f"model-layer-{layer:03d}.safetensors", layer_weights(layer, hidden, intermediate, heads, kv_heads))
    index = {"metadata": {}, "weight_map": weight_map}  # transformers wants both
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (args.out / "config.json").write_text(
        json.dumps(config(layers, hidden, intermediate, heads, kv_heads, tied), indent=1)
    )


if __name__ == "__main__":
    main()
