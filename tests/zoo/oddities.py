"""Traces that are not what they claim: the judge must refuse them or accuse them, and say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lockstep.points import parse_name
from torch import Tensor

from zoo.models import STORAGE, Models
from zoo.play import Played, play, write_trace
from zoo.runs import RUNS


@dataclass(frozen=True)
class Oddity:
    id: str
    what: str
    make: Callable[[Models, Path], Path]
    exit_codes: tuple[int, ...]
    words: tuple[str, ...]  # one of them must be said; none: there must be a note, whatever it says
    model: str = "tiny"  # the model that the judge is given

    def complaints(self, exit_code: int, printed: str, found: str) -> list[str]:
        """What is wrong with the judge's answer: its exit code, what it printed, its JSON (or nothing)."""
        complaints = []
        if exit_code not in self.exit_codes:
            complaints.append(f"exit code: expected one of {self.exit_codes}, found {exit_code}")
        if not self.words and found and not json.loads(found)["notes"]:
            complaints.append("expected a note, found none")
        if self.words and not any(word in printed + found for word in self.words):
            complaints.append(f"expected one of {', '.join(self.words)} to be said, found none")
        return complaints


def written(change: Callable[[Played], None], models: Models, out: Path, model: str = "tiny", **options: Any) -> Path:
    played = play(models.load(model, "f32"), RUNS["prefill"])
    change(played)
    return write_trace(out, played, **options)


def as_it_is(played: Played) -> None:
    pass


def narrow_heads(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """[T, 6, 48] -> [T, 6, 32]."""
    return (name, tensor[..., :32]) if parse_name(name)[0] == "attn_q_proj_raw" else (name, tensor)


def final_state_for_last_output(played: Played) -> None:
    last = played.loaded.model.config.num_hidden_layers - 1
    for step in played.steps:
        step.tensors[f"layer_{last}_layer_output"] = step.tensors["final_norm_output"]


def one_buffer(played: Played) -> None:
    last = played.loaded.model.config.num_hidden_layers - 1
    for step in played.steps:
        for layer in range(last):
            step.tensors[f"layer_{layer}_attn_k_rope"] = step.tensors[f"layer_{last}_attn_k_rope"]


def weight_changed(models: Models, out: Path) -> Path:
    written(as_it_is, models, out)
    path = out / "trace.json"
    meta = json.loads(path.read_text())
    meta["weights"]["model.layers.1.mlp.up_proj.weight"]["hash"] = "0123456789abcdef"
    path.write_text(json.dumps(meta))
    return out


ODDITIES = (
    Oddity(
        "head-dim-derived",
        "E6: head_dim = hidden / heads, so that q has another shape",
        partial(written, as_it_is, rewrite=narrow_heads),
        (1, 2),
        ("attn_q_proj_raw", "head_dim"),
    ),
    Oddity(
        "another-model",
        "the trace of another model than --model",
        partial(written, as_it_is, model="wide"),
        (2,),
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size", "intermediate_size"),
    ),
    Oddity(
        "weight-changed",
        "a weight has changed since the trace was written",
        weight_changed,
        (1, 2),
        ("layers.1.mlp.up_proj.weight",),
    ),
    Oddity(
        "declared-bf16",
        "f32 values under a declaration of bf16",
        partial(written, as_it_is, storage=STORAGE["bf16"]),
        (0, 1, 2),
        (),
    ),
    Oddity(
        "final-state-mixed-up",
        "hidden_states[-1], after the final norm, stands for the last layer's output (transformers#42594, vllm#33167)",
        partial(written, final_state_for_last_output),
        (1,),
        ("layer_4_layer_output",),
    ),
    Oddity(
        "graph-captured",
        "every layer's k is that of the last: one buffer, copied too late (imp#1275)",
        partial(written, one_buffer),
        (1,),
        ("layer_0_attn_k_rope",),
    ),
)
