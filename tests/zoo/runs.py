"""What is run: forward calls as engines make them. Tokens are fixed beforehand, so that a mutant cannot change them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lockstep.tokenize import Tokenizer
from torch import Tensor

from zoo.models import TINY, Loaded

TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness "
    "was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let there "
    "be light: and there was light. And God saw the light, that it was good: and God divided the light from the "
    "darkness. And God called the light Day, and the darkness he called Night. And the evening and the morning were "
    "the first day."
)


@dataclass(frozen=True)
class Slice:
    """The tokens [start, end) of one sequence."""

    sequence: int
    start: int
    end: int


@dataclass(frozen=True)
class Call:
    """One step of the trace: one or several sequences."""

    phase: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Run:
    id: str
    calls: tuple[Call, ...]
    scores: bool = False  # attn_scores and attn_probs are recorded too
    row_scale: float | None = None  # the input is embeddings whose rows have this RMS
    recorded: Callable[[Tensor], Tensor] | None = (
        None  # positions -> bool; all rows of the keys and values all the same
    )


def one(*ends: int) -> tuple[Call, ...]:
    """Prefill of sequence 0 in chunks that end there."""
    starts = (0, *ends[:-1])
    return tuple(Call("prefill", (Slice(0, a, b),)) for a, b in zip(starts, ends, strict=True))


def decode(first: int, count: int) -> tuple[Call, ...]:
    return tuple(Call("decode", (Slice(0, first + i, first + i + 1),)) for i in range(count))


def batch(lengths: tuple[int, ...], steps: int) -> tuple[Call, ...]:
    """A ragged batch: one prefill of all sequences, then decode steps of all."""
    calls = [Call("prefill", tuple(Slice(i, 0, n) for i, n in enumerate(lengths)))]
    for step in range(steps):
        calls.append(Call("decode", tuple(Slice(i, n + step, n + step + 1) for i, n in enumerate(lengths))))
    return tuple(calls)


RUNS = {
    run.id: run
    for run in (
        Run("prefill", one(48)),
        Run("decode", one(36) + decode(36, 5)),
        Run("chunks", one(24, 48)),
        Run("batch", batch((20, 31, 9), 2)),
        Run("scores", one(40), scores=True),
        Run("small", one(40), row_scale=0.02),
        Run("long", one(1100)),
        Run("long-decode", one(1060) + decode(1060, 3)),
        # For clean cases: a fault in rows that are not recorded would rightly be seen wherever they are read.
        Run("long-rows", one(1100), recorded=lambda own: (own < 4) | ((own >= 1000) & (own < 1012)) | (own >= 1084)),
    )
}


@functools.cache
def _text_ids() -> list[int]:
    return Tokenizer(str(TINY)).encode(TEXT, "zoo")


@functools.cache
def token_ids(model: str, sequence: int, count: int, vocabulary: int) -> list[int]:
    """Text for the trained model (each sequence begins elsewhere in it), random ids after it and for the others."""
    text = _text_ids()[13 * sequence :] if model in ("tiny", "loud") else []
    generator = random.Random(f"{model}/{sequence}")
    return (text + [generator.randrange(vocabulary) for _ in range(count)])[:count]


def ids_of(loaded: Loaded, part: Slice) -> list[int]:
    return token_ids(loaded.name, part.sequence, part.end, loaded.model.config.vocab_size)[part.start :]


def embeddings_of(loaded: Loaded, run: Run, part: Slice) -> Tensor | None:
    """[T, D] in the storage dtype, or None where the input is the tokens."""
    if run.row_scale is None:
        return None
    rows = loaded.model.model.embed_tokens.weight[torch.tensor(ids_of(loaded, part))].float()
    scaled = rows / rows.pow(2).mean(-1, keepdim=True).sqrt() * run.row_scale
    return scaled.to(loaded.model.dtype)
