"""Random Qwen3 checkpoints, as transformers itself writes them, for tests that need many shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Small, and with every trap of the shape: head_dim is not hidden / heads, and heads share keys and values.
SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "vocab_size": 257,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


def make_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | int = "5GB",
    tokenizer: bool = False,
    **shape: Any,
) -> Path:
    """Writes a random checkpoint into `directory` and returns it. `shape` overrides SHAPE.

    `max_shard_size` below the model's size gives shards and an index; `tokenizer` adds a byte-level tokenizer.json.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = SHAPE | shape
    theta = shape.pop("rope_theta")
    config = Qwen3Config(**shape, rope_parameters={"rope_type": "default", "rope_theta": theta})
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialise(name, parameter)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        make_tokenizer(Path(directory))
    return Path(directory)


def initialise(name: str, parameter: nn.Parameter) -> None:
    """Wider than the usual 0.02: with that, attention is nearly uniform and hides RoPE and mask bugs."""
    if name.endswith("norm.weight"):
        parameter.uniform_(0.5, 2.0)
    elif "embed_tokens" in name or "lm_head" in name:
        parameter.normal_(std=0.5)
    else:
        parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)


def make_tokenizer(directory: Path) -> None:
    """One token for each byte (ids 0 to 255, in the order of the byte-level alphabet)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))


def edit_config(directory: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    """Rewrites config.json with `changes` and without the keys of `remove`."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}))
