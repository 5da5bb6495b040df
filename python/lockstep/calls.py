"""What the reference runs: prompts, embeddings or a trace become a list of forward calls, checked beforehand."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lockstep.config import Config
from lockstep.errors import LockstepError
from lockstep.tokenize import Tokenizer, read_prompts
from lockstep.trace import Trace

DEFAULT_INPUT = "In the beginning God created the heaven and the earth."


@dataclass(frozen=True)
class Call:
    """One forward call: the tokens of `sequence` from position `start` on."""

    sequence: int
    phase: str  # "prefill" or "decode"
    start: int
    ids: list[int]  # -1 where there is no token
    embeddings: Tensor | None = None  # [T, D]: used instead of the ids' embeddings


class SpecialEmbeddings:
    """Rows that replace the prompt's embeddings: zeros, tiny or huge pseudo-random ones, or those of a .npy file."""

    SCALES = {"zeros": 0.0, "tiny": 2.0**-20, "huge": 2.0**13}

    def __init__(self, source: str, hidden_size: int):
        self.source, self.hidden_size = source, hidden_size
        self.array = None if source in self.SCALES else _read_embeddings(source, hidden_size)  # [B, T, D]

    def rows(self, sequence: int, start: int, count: int) -> Tensor:  # [count, D], f32 or as in the file
        if self.array is None:
            return torch.from_numpy(self._generated(start, count))
        sequences, tokens, _ = self.array.shape
        if sequence >= sequences or start + count > tokens:
            raise LockstepError(
                f"{self.source}: expected embeddings for {start + count} tokens of sequence "
                f"{sequence}, found {sequences} sequences of {tokens} tokens; give as many as the "
                "prompt has"
            )
        return torch.from_numpy(self.array[sequence, start : start + count].copy())

    def _generated(self, start: int, count: int) -> np.ndarray:
        """scale * (24 bits of splitmix64(t * D + c) as a number in [-1, 1)): exact in f32, the same in any language."""
        D = self.hidden_size
        with np.errstate(over="ignore"):
            z = np.arange(start * D, (start + count) * D, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
        unit = (z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0
        return (unit * self.SCALES[self.source]).astype(np.float32).reshape(count, D)


def _read_embeddings(path: str, hidden_size: int) -> np.ndarray:
    """[T, D] or [B, T, D] -> [B, T, D]."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LockstepError(
            f"--input-embeddings {path}: expected zeros, tiny, huge or a .npy file, found {error}"
        ) from error
    is_float = isinstance(array, np.ndarray) and array.dtype.newbyteorder("=") in (np.float16, np.float32, np.float64)
    if not is_float or array.ndim not in (2, 3) or array.shape[-1] != hidden_size or array.size == 0:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise LockstepError(
            f"{path}: expected f16, f32 or f64 of shape [tokens, {hidden_size}] or "
            f"[sequences, tokens, {hidden_size}], found {found}"
        )
    array = array.astype(array.dtype.newbyteorder("="))
    return array if array.ndim == 3 else array[None]


def prompts_of(arguments: argparse.Namespace, special: SpecialEmbeddings | None) -> list[list[int]]:
    """The token ids of each sequence, in the order of the command line."""
    if not arguments.prompts and special is not None and special.array is not None:
        sequences, tokens, _ = special.array.shape
        return [[-1] * tokens for _ in range(sequences)]
    prompts = arguments.prompts or [("--input", DEFAULT_INPUT)]
    tokenizer = Tokenizer(arguments.model) if any(option != "--tokens" for option, _ in prompts) else None
    sequences = []
    for option, value in prompts:
        if option == "--tokens":
            sequences.append((f"--tokens {value}", _parse_ids(value)))
        elif option == "--input":
            sequences.append(("--input", tokenizer.encode(value, "--input")))
        else:
            names = ((f"{value}:{line}", text) for line, text in enumerate(read_prompts(value), 1))
            sequences.extend((name, tokenizer.encode(text, name)) for name, text in names)
    for name, ids in sequences:
        if not ids:
            raise LockstepError(f"{name}: expected at least one token, found an empty prompt")
    return [ids for _, ids in sequences]


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(item) for item in text.split(",")] if text.strip() else []
    except ValueError as error:
        raise LockstepError(f"--tokens: expected token ids such as 1,2,3, found {text!r}") from error


def prefill_calls(sequence: int, ids: list[int], chunk: int | None, special: SpecialEmbeddings | None) -> list[Call]:
    size = chunk or len(ids)
    calls = []
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        rows = special.rows(sequence, start, len(part)) if special else None
        calls.append(Call(sequence, "prefill", start, part, rows))
    return calls


def calls_of_trace(trace: Trace, special: SpecialEmbeddings | None) -> list[Call]:
    """The same tokens in the same chunks and phases; a step with several sequences becomes a call for each."""
    calls = []
    for number, step in enumerate(trace.steps):
        ids, positions, sequences = (_as_list(x) for x in (step.input_ids, step.positions, step.sequences))
        if ids is None:
            ids = [-1] * len(positions)
        for sequence in dict.fromkeys(s for s in sequences if s >= 0):  # -1 is padding
            rows = sorted((i for i, s in enumerate(sequences) if s == sequence), key=lambda i: positions[i])
            start = positions[rows[0]]
            if [positions[i] for i in rows] != list(range(start, start + len(rows))):
                raise LockstepError(
                    f"{trace.path}: step {number}, sequence {sequence}: expected positions without "
                    f"gaps, found {[positions[i] for i in rows]}"
                )
            embeddings = None
            if special is not None and step.phase == "prefill":
                embeddings = special.rows(sequence, start, len(rows))
            elif any(ids[i] < 0 for i in rows):
                embeddings = _recorded_embeddings(trace, number, rows)
            calls.append(Call(sequence, step.phase, start, [ids[i] for i in rows], embeddings))
    return calls


def _as_list(array: Any) -> list[int] | None:
    return None if array is None else [int(x) for x in array]


def _recorded_embeddings(trace: Trace, number: int, rows: list[int]) -> Tensor:
    """The trace's own embeddings, for tokens that it does not name. Throws where it holds none for all of `rows`."""
    tensors = trace.steps[number].tensors
    if "input_embeddings" in tensors:
        embeddings = tensors["input_embeddings"].torch()  # [T, D]
        if embeddings.shape[0] == len(trace.steps[number].positions):
            return embeddings[rows]
    raise LockstepError(
        f"{trace.path}: step {number}: expected input_ids or all rows of input_embeddings, found "
        "neither; give the embeddings with --input-embeddings"
    )


def check_calls(calls: list[Call], decode: int, config: Config) -> None:
    """Everything that could go wrong in the middle of a run."""
    lengths: dict[int, int] = {}
    for call in calls:
        for i, token in enumerate(call.ids):
            if not (0 <= token < config.vocab_size or (token == -1 and call.embeddings is not None)):
                raise LockstepError(
                    f"token {i + call.start} of sequence {call.sequence}: expected an id from 0 to "
                    f"{config.vocab_size - 1}, found {token}; made with another model's tokenizer?"
                )
        if call.embeddings is not None and call.embeddings.shape[-1] != config.hidden_size:
            raise LockstepError(
                f"input_embeddings: expected rows of {config.hidden_size}, "
                f"found {call.embeddings.shape[-1]}; another model's trace?"
            )
        if call.start > lengths.get(call.sequence, 0):
            raise LockstepError(
                f"sequence {call.sequence}: expected the tokens from position "
                f"{lengths.get(call.sequence, 0)} on, found {call.start}; the earlier ones are missing"
            )
        lengths[call.sequence] = call.start + len(call.ids)
        if lengths[call.sequence] + decode > config.max_position_embeddings:
            raise LockstepError(
                f"sequence {call.sequence}: expected at most {config.max_position_embeddings} tokens "
                f"(max_position_embeddings), found {lengths[call.sequence]} and {decode} to decode; "
                "shorten the prompt"
            )
