"""What a mutant is, and what its wrong op is given.

A mutant has one part, or several (pairs of bugs). A part replaces some points, in some places, by what a wrong op makes
of the mutant run's *own* earlier tensors; the model then goes on from there, so that each error is local to its op.
Wrong ops are written once and run in two precisions: in the storage dtype, rounding as the reference rounds, which
gives the trace; and in float64, which gives the effect without any rounding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

EVERY_MODEL = ("tiny", "wide")
EVERY_DTYPE = ("f32", "bf16")

# Captured tensors of one sequence in one forward call, by (bare point name, layer or None).
Captured = dict[tuple[str, int | None], Tensor]


@dataclass(frozen=True)
class Op:
    """One op of a running mutant. All tensors are token-major, and in `dtype`: the storage, or float64."""

    point: str
    layer: int | None
    model: Any  # lockstep.model.Qwen3
    right: Tensor  # [T, ...]: what the right op makes of the same inputs
    captured: Captured  # this sequence, this call: everything before this point
    past: list[Captured]  # this sequence: its earlier calls
    others: dict[int, list[Captured]]  # the other sequences: all their calls so far
    ids: Tensor  # [T], -1 where the input is embeddings
    positions: Tensor  # [T]
    sequence: int
    phase: str
    inputs: Tensor | None  # [T, D]: embeddings that replace those of ids
    dtype: torch.dtype

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def storage(self) -> torch.dtype:
        return self.model.dtype

    @property
    def start(self) -> int:
        return int(self.positions[0])

    @property
    def tokens(self) -> int:
        return len(self.positions)

    def __getitem__(self, point: str) -> Tensor:
        """The run's own tensor at `point` of the same layer (or of the model)."""
        return self.at(point, self.layer)

    def at(self, point: str, layer: int | None) -> Tensor:
        key = (point, layer) if (point, layer) in self.captured else (point, None)
        return self.captured[key].to(self.dtype)

    def has(self, point: str, layer: int | None) -> bool:
        return (point, layer) in self.captured

    def stream(self) -> Tensor:
        """The residual stream that enters this layer, or leaves the last one."""
        if self.layer is None:
            return self.at("layer_output", self.config.num_hidden_layers - 1)
        return self["input_hidden_states"]

    def whole(self, point: str) -> Tensor:
        """Rows of `point` from position 0 to the end of this call: [S, ...]."""
        rows = [call[point, self.layer] for call in self.past] + [self.captured[point, self.layer]]
        return torch.cat(rows).to(self.dtype)

    def of_sequence(self, point: str, sequence: int) -> Tensor | None:
        """Rows of another sequence at this layer, so far."""
        rows = [call[point, self.layer] for call in self.others.get(sequence, []) if (point, self.layer) in call]
        return torch.cat(rows).to(self.dtype) if rows else None

    def weight(self, name: str, layer: int | None = None) -> Tensor:
        """Parameter `name` ("self_attn.q_proj", "input_layernorm", ...) of this layer or `layer`; or of the model."""
        return parameter(self.model, name, self.layer if layer is None else layer).to(self.dtype)

    def random(self, *shape: int, salt: int = 0) -> Tensor:
        """Normal numbers that depend only on the place, so that both precisions get the same."""
        place = f"{self.point}/{self.layer}/{self.sequence}/{self.start}/{salt}"
        generator = torch.Generator().manual_seed(zlib.crc32(place.encode()))
        return torch.randn(*shape, generator=generator).to(self.dtype)

    def rounded(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x on the grid of another dtype."""
        return x.to(dtype).to(self.dtype)


def parameter(model: Any, name: str, layer: int | None) -> Tensor:
    if name in ("embed_tokens", "norm"):
        return getattr(model.model, name).weight.data
    if name == "lm_head":
        return model.lm_head.weight.data
    return model.model.layers[layer].get_submodule(name).weight.data


@dataclass(frozen=True)
class Where:
    """Where a part applies; elsewhere the op is right."""

    layers: str | int = "all"  # "all", "later" (from 1 on), "last", or a number (negative: from the end)
    phase: str | None = None  # "prefill" or "decode"
    later_chunk: bool = False  # only prefills that do not start at position 0
    sequence: int | None = None
    heads: tuple[int, ...] | None = None
    rows: Callable[[Tensor], Tensor] | None = None  # positions [T] -> bool [T]

    def has_layer(self, layer: int | None, count: int) -> bool:
        if layer is None or self.layers == "all":
            return True
        if self.layers == "later":
            return layer >= 1
        return layer == (count - 1 if self.layers == "last" else self.layers % count)

    def has_call(self, phase: str, start: int, sequence: int) -> bool:
        if self.phase not in (None, phase) or self.sequence not in (None, sequence):
            return False
        return not self.later_chunk or (phase == "prefill" and start > 0)

    def merge(self, op: Op, wrong: Tensor) -> Tensor:
        wrong = wrong.to(op.right.dtype).reshape(op.right.shape)
        if self.heads is None and self.rows is None:
            return wrong
        result = op.right.clone()
        rows = torch.ones(op.tokens, dtype=torch.bool) if self.rows is None else self.rows(op.positions)
        heads = list(range(result.shape[1])) if self.heads is None else list(self.heads)
        index = (rows.nonzero(), torch.tensor(heads)) if self.heads is not None else (rows.nonzero()[:, 0],)
        result[index] = wrong[index]
        return result


def only(*positions: int) -> Callable[[Tensor], Tensor]:
    return lambda own: torch.isin(own, torch.tensor(positions))


def from_position(first: int) -> Callable[[Tensor], Tensor]:
    return lambda own: own >= first


def last_row(own: Tensor) -> Tensor:
    return own == own[-1]


Wrong = Callable[[Op], Tensor]


@dataclass(frozen=True)
class Part:
    points: tuple[str, ...]  # bare names
    wrong: Wrong
    causes: tuple[str | None, ...]  # any of these may be named; None: it may stay unexplained, with one of `patterns`
    patterns: tuple[str, ...] = ()
    where: Where = Where()
    # Other mistakes, by their causes, that may give the same values up to rounding: such a cause is as right where the
    # two differ by less than the limit of detection in float64, and wrong where they do not.
    twins: tuple[tuple[str, Wrong], ...] = ()

    def applies(self, op: Op, layers: int) -> bool:
        is_there = self.where.has_layer(op.layer, layers) and self.where.has_call(op.phase, op.start, op.sequence)
        return op.point in self.points and is_there


@dataclass(frozen=True)
class Mutant:
    id: str
    bug: str
    parts: tuple[Part, ...]
    run: str = "prefill"  # a name of runs.RUNS
    models: tuple[str, ...] = EVERY_MODEL
    dtypes: tuple[str, ...] = EVERY_DTYPE
    sample: bool = False  # in the fixed sample of continuous integration
    tags: tuple[str, ...] = ()
    capture: str = ""  # a name of clean.CAPTURES, where the trace does not hold every point as usual
    seen_at: tuple[str, ...] = ()  # the points where the fault shows, if its own is not in such a trace


def mutant(
    id: str,
    bug: str,
    points: str,
    wrong: Wrong,
    causes: str | tuple[str | None, ...],
    *,
    patterns: str = "",
    run: str = "prefill",
    models: tuple[str, ...] = EVERY_MODEL,
    dtypes: tuple[str, ...] = EVERY_DTYPE,
    sample: bool = False,
    tags: str = "",
    twins: tuple[tuple[str, Wrong], ...] = (),
    **where: Any,
) -> Mutant:
    """One row of the tables. `points`, `patterns`, `tags` are words; `where` is as in Where."""
    if run.startswith("long"):
        models = ("tiny",)  # a judge reads all its rows
    causes = (causes,) if isinstance(causes, str) else causes
    part = Part(tuple(points.split()), wrong, causes, tuple(patterns.split()), Where(**where), twins)
    return Mutant(id, bug, (part,), run, models, dtypes, sample, tuple(tags.split()))


def pair(id: str, *mutants: Mutant, sample: bool = False, **layers: Any) -> Mutant:
    """Several bugs at once. `layers` gives each a layer of its own: layers=(0, 2)."""
    chosen = layers.get("layers", (None,) * len(mutants))
    parts = []
    for one, layer in zip(mutants, chosen, strict=True):
        for part in one.parts:
            parts.append(part if layer is None else replace(part, where=replace(part.where, layers=layer)))
    runs = {one.run for one in mutants}
    assert len(runs) == 1, id
    models = tuple(name for name in mutants[0].models if all(name in one.models for one in mutants))
    dtypes = tuple(name for name in mutants[0].dtypes if all(name in one.dtypes for one in mutants))
    bug = "; and ".join(one.bug for one in mutants)
    return Mutant(id, bug, tuple(parts), runs.pop(), models, dtypes, sample, ("pair",))
