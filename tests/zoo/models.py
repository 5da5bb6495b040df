"""The checkpoints of the zoo."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import make_checkpoint
from lockstep import model as pure
from lockstep import reference
from safetensors.torch import load_file, save_file

from zoo import ROOT

DTYPES = reference.DTYPES
STORAGE = reference.STORAGE
TINY = ROOT / "models" / "tiny-qwen3"
# As wide as Qwen3-0.6B, with square projections, so that a transposed one still fits; untied; weights in f32.
WIDE = {
    "hidden_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 2000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}
LOUD_LAYER, LOUDNESS = 1, 64.0  # gate and up of one layer times that: their product leaves f16


@dataclass(frozen=True)
class Loaded:
    name: str
    directory: Path
    dtype: str  # "f32", "bf16", "f16"
    model: pure.Qwen3
    fingerprints: dict[str, Any]


class Models:
    """Makes checkpoints in `directory` when they are first asked for, and keeps the loaded ones."""

    def __init__(self, directory: Path):
        self.directory = directory

    @functools.cache  # noqa: B019 - lives as long as the run
    def checkpoint(self, name: str) -> Path:
        out = self.directory / name
        if name == "tiny":
            return TINY
        if name == "wide":
            return make_checkpoint(out, seed=1, **WIDE)
        if name == "loud":
            return _scaled_copy(TINY, out)
        raise KeyError(name)

    @functools.cache  # noqa: B019
    def load(self, name: str, dtype: str) -> Loaded:
        directory = self.checkpoint(name)
        model = pure.load_model(pure.open_checkpoint(directory), DTYPES[dtype])
        return Loaded(name, directory, dtype, model, reference.fingerprints(model))


def _scaled_copy(source: Path, out: Path) -> Path:
    out.mkdir(parents=True)
    for path in source.glob("*.json"):
        shutil.copy(path, out)
    weights = load_file(source / "model.safetensors")
    for name in ("gate_proj", "up_proj"):
        key = f"model.layers.{LOUD_LAYER}.mlp.{name}.weight"
        weights[key] = weights[key] * LOUDNESS
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def eager() -> None:
    """The same bits in every run."""
    reference.make_deterministic(torch.get_num_threads())
