"""Runs a model over a Run with a mutant in it, keeps every point, measures the effect, and writes the trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lockstep.points import names_for, parse_name, point_name, points
from lockstep.trace import Selection, TraceWriter
from torch import Tensor

from zoo import noise
from zoo.context import Captured, Mutant, Op, Part
from zoo.models import STORAGE, Loaded
from zoo.noise import Effect
from zoo.runs import Run, Slice, embeddings_of, ids_of

ALWAYS_WHOLE = ("attn_k_rope", "attn_v_proj_raw")  # what later rows' attention needs


@dataclass
class Step:
    """One forward call of all its sequences: rows of the sequences one after the other."""

    phase: str
    ids: list[int]
    positions: list[int]
    sequences: list[int]
    tensors: dict[str, Tensor]
    next_tokens: list[int]
    last_rows: list[int]


@dataclass
class Played:
    loaded: Loaded
    run: Run
    steps: list[Step] = field(default_factory=list)
    effects: dict[str, Effect] = field(default_factory=dict)  # of every replaced tensor, in execution order
    twins: dict[str, float] = field(default_factory=dict)  # causes and how far above the limit they differ, at most
    local: dict[str, Effect] = field(default_factory=dict)  # the local error of every tensor, if that was asked for

    def order(self, name: str) -> int:
        """Place of a tensor in the order of execution."""
        return names_for(self.loaded.model.config.num_hidden_layers, on_request=True).index(name)

    def graded(self, grade: str) -> list[str]:
        return sorted((name for name, one in self.effects.items() if one.grade == grade), key=self.order)


@torch.inference_mode()
def play(loaded: Loaded, run: Run, mutant: Mutant | None = None, measure: bool = True, check: bool = False) -> Played:
    """`measure`: the effects of replaced tensors; `check`: the local errors of all tensors, which takes longer."""
    played, player = Played(loaded, run), _Player(loaded, run, mutant, measure, check)
    for call in run.calls:
        parts = [player.forward(part, call.phase) for part in call.slices]
        played.steps.append(_joined(call.phase, parts))
    storage = loaded.model.dtype
    played.effects = _effects(player.measured, storage)
    if mutant and mutant.seen_at:
        played.effects = _moved(played.effects, mutant.seen_at)
    for cause, measured in player.twins.items():
        played.twins[cause] = max(one.over_limit() for one in _effects(measured, storage).values())
    played.local = _effects(player.checked, storage)
    return played


# Wrong, right and variance of a tensor, a part for each forward call.
Measured = dict[str, list[tuple[Tensor, Tensor, Tensor]]]


def _effects(measured: Measured, storage: torch.dtype) -> dict[str, Effect]:
    joined = {name: [torch.cat(x) for x in zip(*parts, strict=True)] for name, parts in measured.items()}
    return {name: noise.effect(*x, noise.Limits.of(parse_name(name)[0], storage)) for name, x in joined.items()}


def _moved(effects: dict[str, Effect], points: tuple[str, ...]) -> dict[str, Effect]:
    """Each layer's largest effect at other points: where it shows if its own point is not in the trace."""
    moved: dict[str, Effect] = {}
    for (name, one), point in itertools.product(effects.items(), points):
        layer = parse_name(name)[1]
        place = name if layer is None else point_name(point, layer)
        if place not in moved or moved[place].over_limit() < one.over_limit():
            moved[place] = one
    return moved


class _Player:
    """The state of a run: caches and captured tensors by sequence, and what the replaced points measured."""

    def __init__(self, loaded: Loaded, run: Run, mutant: Mutant | None, measure: bool, check: bool):
        self.loaded, self.run, self.measure, self.check = loaded, run, measure, check
        self.parts = mutant.parts if mutant else ()
        self.twins: dict[str, Measured] = {}  # by the cause of each
        self.caches: dict[int, Any] = {}
        self.captured: dict[int, list[Captured]] = {}
        self.measured: Measured = {}
        self.checked: Measured = {}

    def forward(self, part: Slice, phase: str) -> tuple[Slice, list[int], Captured, int]:
        model = self.loaded.model
        ids, embeddings = ids_of(self.loaded, part), embeddings_of(self.loaded, self.run, part)
        cache = self.caches.setdefault(part.sequence, model.new_cache())
        past = list(self.captured.setdefault(part.sequence, []))
        own: Captured = {}
        self.captured[part.sequence].append(own)
        known = [-1] * len(ids) if embeddings is not None else ids
        op = Op(
            point="",
            layer=None,
            model=model,
            right=torch.empty(0),
            captured=own,
            past=past,
            others={sequence: calls for sequence, calls in self.captured.items() if sequence != part.sequence},
            ids=torch.tensor(known),
            positions=torch.arange(part.start, part.end),
            sequence=part.sequence,
            phase=phase,
            inputs=embeddings,
            dtype=model.dtype,
        )

        def tap(point: str, layer: int | None, tensor: Tensor) -> Tensor | None:
            own[point, layer] = tensor
            this = replace(op, point=point, layer=layer, right=tensor)
            for one in self.parts:
                if one.applies(this, model.config.num_hidden_layers):
                    own[point, layer] = one.where.merge(this, one.wrong(this))
                    if self.measure:
                        self._measure(one, this)
            if self.check and (self.run.scores or not points()[point].on_request):
                self._check(this, own[point, layer])
            return own[point, layer]

        inputs = torch.tensor([ids]) if embeddings is None else embeddings[None]
        logits = model(inputs, cache, tap)
        return part, known, own, int(logits[0, -1].argmax())

    def _measure(self, part: Part, op: Op) -> None:
        """The same wrong op in float64, where nothing is rounded that the bug itself does not round."""
        value, variance = noise.right(_in_float64(op))
        wide = replace(_in_float64(op), right=value)
        wrong = part.where.merge(wide, part.wrong(wide))
        self._add(self.measured, op, wrong, value, variance)
        for cause, twin in part.twins:
            self._add(self.twins.setdefault(cause, {}), op, part.where.merge(wide, twin(wide)), wrong, variance)

    def _check(self, op: Op, tensor: Tensor) -> None:
        masked = tensor <= torch.finfo(op.storage).min / 2 if op.point == "attn_scores" else torch.tensor(False)
        self._add(self.checked, op, tensor.double().masked_fill(masked, float("-inf")), *noise.right(_in_float64(op)))

    def _add(self, measured: Measured, op: Op, *three: Tensor) -> None:
        rows = slice(None) if self.run.recorded is None else self.run.recorded(op.positions)
        measured.setdefault(point_name(op.point, op.layer), []).append(tuple(x[rows] for x in three))


def _in_float64(op: Op) -> Op:
    return replace(op, dtype=torch.float64, right=op.right.double())


def _joined(phase: str, parts: list[tuple[Slice, list[int], Captured, int]]) -> Step:
    keys = list(parts[0][2])
    if len(parts) > 1:  # their widths are the sequences' lengths, which differ
        keys = [key for key in keys if not points()[key[0]].on_request]
    counts = [len(ids) for _, ids, _, _ in parts]
    return Step(
        phase=phase,
        ids=[i for _, ids, _, _ in parts for i in ids],
        positions=[p for part, *_ in parts for p in range(part.start, part.end)],
        sequences=[part.sequence for part, ids, _, _ in parts for _ in ids],
        tensors={point_name(*key): torch.cat([own[key] for _, _, own, _ in parts]) for key in keys},
        next_tokens=[token for *_, token in parts],
        last_rows=[int(x) - 1 for x in np.cumsum(counts)],
    )


# What is written in place of a tensor: name, tensor; or None for nothing.
Rewrite = Callable[[str, Tensor], tuple[str, Tensor] | None]


def write_trace(
    out: Path,
    played: Played,
    *,
    producer: str = "zoo",
    rewrite: Rewrite = lambda name, tensor: (name, tensor),
    fingerprints: bool = True,
    extra: Callable[[Step], dict[str, Tensor]] = lambda step: {},
    last_logits: bool = False,
    **options: Any,
) -> Path:
    """The trace of `played`. `rewrite` may leave out, rename or change tensors; `extra` adds some of its own names;
    `options` go to TraceWriter."""
    loaded, config = played.loaded, played.loaded.model.config
    selection = Selection("*,attn_scores,attn_probs") if played.run.scores else Selection()
    kept = [name for name in names_for(config.num_hidden_layers, played.run.scores) if _kept(name, rewrite, played)]
    defaults = {
        "config": config.trace_config(),
        "storage": STORAGE[loaded.dtype],
        "points": [*kept, "next_token"],
        "selection": selection,
        "weights": loaded.fingerprints if fingerprints else {},
    }
    with TraceWriter(out, producer=producer, version="1", **(defaults | options)) as writer:
        for step in played.steps:
            with writer.begin_step(step.ids, step.positions, step.sequences, step.phase) as file:
                for name, tensor in step.tensors.items():
                    rows = _rows(name, played.run, step)
                    if name == "logits" and last_logits:
                        rows = step.last_rows
                    changed = rewrite(name, tensor)
                    if changed is None or not file.wants(name):
                        continue
                    file.record(changed[0], changed[1] if rows is None else changed[1][rows], rows=rows)
                for name, tensor in extra(step).items():
                    file.record(name, tensor)
                file.record("next_token", np.array(step.next_tokens, np.int32), rows=step.last_rows)
    return out


def _kept(name: str, rewrite: Rewrite, played: Played) -> bool:
    tensor = played.steps[0].tensors.get(name)
    changed = None if tensor is None else rewrite(name, tensor)
    return changed is not None and changed[0] == name


def _rows(name: str, run: Run, step: Step) -> list[int] | None:
    """Indices of the rows that are recorded, or None for all."""
    if run.recorded is None or parse_name(name)[0] in ALWAYS_WHOLE:
        return None
    return run.recorded(torch.tensor(step.positions)).nonzero()[:, 0].tolist()
