"""What `lockstep.compare` and `lockstep.replay` return: the JSON of the command line as typed, frozen objects.

Each class names the keys that it takes from the JSON, so this file is also the reader of docs/compare.md and
docs/replay.md; `data` keeps the whole object for what is not named here. Numbers are floats, NaN and infinities too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lockstep.results_json import build, layer_of, layers_of, shown, within_of

if TYPE_CHECKING:
    import pandas as pd

_Result = TypeVar("_Result", "Comparison", "Replay")


# --- Places and figures --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something is; head and channel are None where it is a whole row, or where the point has no heads."""

    sequence: int
    position: int
    head: int | None = None
    channel: int | None = None


@dataclass(frozen=True, kw_only=True)
class ErrorAt(Place):
    """An error in noise units, and where it is."""

    error: float


@dataclass(frozen=True, kw_only=True)
class LargestError(ErrorAt):
    """The largest error of a single element, with both values."""

    captured: float
    recomputed: float


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Best factor between captured and recomputed values, less 1."""

    value: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class SideStats:
    """Values of one side in the rows joined; mean, std, min and max are of the finite ones."""

    dtype: str
    mean: float
    std: float
    min: float
    max: float
    nan_count: int
    inf_count: int
    first_nan: Place | None
    first_inf: Place | None


# --- Replay --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OpError:
    """One op of one side, recomputed in float64. Errors are in noise units, and None where nothing could be judged."""

    name: str
    layer: int | None = field(metadata={"read": layer_of})
    point: str
    op: str
    verdict: str  # "clean", "suspect", "faulty", "not-observable"
    why: str
    inputs: tuple[str, ...] = field(metadata={"key": "from"})  # the captured points that it was recomputed from
    bridged: bool
    rows: int
    rows_not_observable: int
    rows_inherited: int
    elements: int
    worst_row: ErrorAt | None
    worst_head: ErrorAt | None
    whole: float | None
    max: LargestError | None
    scale: Scale | None
    non_finite: int
    first_non_finite: Place | None
    side: str | None = None  # "reference" or "candidate" in a comparison


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A known mistake; `explained` is the error that it leaves, in noise units."""

    cause: str
    text: str
    explained: float


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """What an error looks like: "exact at position 0"."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault, wherever it shows. `error` is its worst row or head in noise units; below `clean` it would be none."""

    point: str
    layers: tuple[int, ...] = field(metadata={"read": layers_of})  # empty outside the layers
    names: tuple[str, ...] = field(metadata={"key": "points"})
    op: str
    error: float
    clean: float
    cause: str | None  # "rope-interleaved"; None: unexplained, and so are the three below
    text: str | None
    advice: str | None
    explained: float | None
    also: tuple[Explanation, ...]  # fit as well
    next: Explanation | None  # the best of those that do not fit
    patterns: tuple[Pattern, ...]  # the most telling first
    worst: Place
    sentence: str
    side: str | None = None  # "reference" or "candidate" in a comparison


@dataclass(frozen=True, kw_only=True)
class WeightDifference:
    name: str
    text: str


class _Report:
    """What both results offer. The words come from traces: here they are escaped."""

    verdict: str
    text: str
    data: dict[str, Any]
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        subjects = [f"{f.side}: {f.sentence}" if f.side else f.sentence for f in self.findings]
        lines = [shown(text, 400) for text in (f"<{type(self).__name__}: {self._headline()}>", *subjects[:8])]
        more = len(self.findings) - 8
        return "\n  ".join(lines + ([f"and {more} more findings"] if more > 0 else []))

    def to_json(self) -> str:
        """Everything, as `--json` writes it."""
        return json.dumps(self.data, indent=2, ensure_ascii=False) + "\n"

    def _headline(self) -> str:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        from lockstep.results_html import html_of

        return html_of(self._headline(), self.findings, self._worst_points())

    def _worst_points(self) -> list[dict[str, str]]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, repr=False)
class Replay(_Report):
    """Every op of one side judged by itself: "clean" or "faulty" (docs/replay.md)."""

    verdict: str
    exit_code: int
    traces: tuple[str, ...] = field(metadata={"key": "trace"})
    model: str
    findings: tuple[Finding, ...]
    layouts: tuple[str, ...] = field(metadata={"read": lambda items: tuple(item["text"] for item in items)})
    weights_compared: int
    weights: tuple[WeightDifference, ...]  # that are not the checkpoint's
    notes: tuple[str, ...]
    points: tuple[OpError, ...]  # in execution order
    text: str = field(default="", compare=False)  # the report of the terminal; empty inside of a comparison
    data: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def first_faulty(self) -> OpError | None:
        """The first faulty op in execution order."""
        return next((point for point in self.points if point.verdict == "faulty"), None)

    def to_pandas(self) -> pd.DataFrame:
        """One row per op. Needs pandas."""
        from lockstep.results_table import replay_frame

        return replay_frame(self)

    def _headline(self) -> str:
        faulty = sum(point.verdict == "faulty" for point in self.points)
        return f"{self.verdict}, {len(self.points)} ops, {faulty} faulty"

    def _worst_points(self) -> list[dict[str, str]]:
        from lockstep.results_table import worst_ops

        return worst_ops(self)


# --- Comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The worst element with both values, the worst token, and the worst head where the point has heads."""

    element: Place
    reference: float
    candidate: float
    token: Place
    token_relative_l2: float
    min_token_cosine: float
    min_token_cosine_at: Place
    head: int | None = None
    head_relative_l2: float | None = None
    min_head_cosine: float | None = None


@dataclass(frozen=True, kw_only=True)
class PointDifference:
    """One point of both sides (docs/compare.md explains every figure), and the errors of its op on each side."""

    name: str
    layer: int | None = field(metadata={"read": layer_of})
    point: str
    diff_class: str = field(metadata={"key": "class"})
    row_shape: tuple[int, ...]
    rows: int
    rows_only_reference: int
    rows_only_candidate: int
    elements: int
    bit_identical: bool
    reference: SideStats
    candidate: SideStats
    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float
    zero_mismatches: int
    cosine: float
    relative_l2: float
    snr_db: float
    best_scale: float
    within: dict[float, float] = field(metadata={"read": within_of})  # atol = rtol -> share of the elements
    within_user: float | None
    user_tolerance_missed: bool
    worst: Worst
    mask_mismatches: int
    first_mask_mismatch: Place | None
    non_finite_mismatches: int
    first_non_finite_mismatch: Place | None
    bound: float | None
    reasons: tuple[str, ...]
    fails: bool  # this point alone makes the run different
    reference_op: OpError | None = None  # None: not replayed
    candidate_op: OpError | None = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side's traces."""

    traces: tuple[str, ...]
    producer: str
    model_type: str
    storage: str
    storage_declared: bool
    runs: int
    steps: int
    sequences: int
    tokens: int
    points: int
    closed: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A completeness failure; `point` is empty where it is about a whole trace."""

    kind: str
    side: str
    point: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SequencePair:
    reference: int
    candidate: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class OneSidedPoint:
    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class TokenSide:
    """One side's choice after a row of logits; `next` as recorded, else the token of the largest logit."""

    next: int
    top_ids: tuple[int, ...]
    top_values: tuple[float, ...]
    margin: float
    gap: float


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """Logits after one token that both sides have (docs/compare.md, "Tokens")."""

    sequence: int
    position: int
    reference: TokenSide
    candidate: TokenSide
    same_top: bool
    same_next: bool
    within_noise: bool
    near_tie: bool
    common_top5: int
    common_top10: int
    kl: float
    noise_rms: float
    noise_max: float
    noise_relative_l2: float
    noise_reach: float
    non_finite_mismatches: int


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Which tokens the logits choose; counts are of `rows`."""

    same_top: int
    same_next: int
    near_ties: int
    different_near_ties: int
    mean_common_top5: float
    mean_common_top10: float
    rows_with_kl: int
    mean_kl: float
    max_kl: TokenRow | None
    first_different: TokenRow | None
    rows: tuple[TokenRow, ...]


@dataclass(frozen=True, kw_only=True)
class Replays:
    """The replay of each side's trace; None where there is none."""

    reference: Replay | None
    candidate: Replay | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(_Report):
    """Two sides compared: "same" or "different" (docs/compare.md)."""

    verdict: str
    exit_code: int
    reference: Side
    candidate: Side
    pairs: tuple[SequencePair, ...]
    failures: tuple[Failure, ...]
    weights_compared: int
    weights: tuple[WeightDifference, ...]  # that differ
    first_significant: str | None
    first_failing: str | None
    tokens: Tokens
    only_reference: tuple[OneSidedPoint, ...]
    only_candidate: tuple[OneSidedPoint, ...]
    notes: tuple[str, ...]
    points: tuple[PointDifference, ...]  # in execution order
    replay: Replays | None  # None without `model`
    text: str = field(default="", compare=False)  # the report of the terminal
    data: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:  # type: ignore[override]
        """The faults of both sides, the reference's first; empty without `model`."""
        return tuple(finding for replay in self._replays() for finding in replay.findings)

    @cached_property
    def first_faulty(self) -> OpError | None:
        """The first faulty op in execution order, on either side; its `side` says which."""
        order = {point.name: index for index, point in enumerate(self.points)}
        firsts = [replay.first_faulty for replay in self._replays() if replay.first_faulty is not None]
        return min(firsts, key=lambda op: order.get(op.name, len(order)), default=None)

    def to_pandas(self) -> pd.DataFrame:
        """One row per point. Needs pandas."""
        from lockstep.results_table import comparison_frame

        return comparison_frame(self)

    def _replays(self) -> list[Replay]:
        both = (self.replay.reference, self.replay.candidate) if self.replay else ()
        return [replay for replay in both if replay is not None]

    def _headline(self) -> str:
        parts = [self.verdict, f"{len(self.points)} points", f"{sum(point.fails for point in self.points)} failing"]
        parts += [f"{len(self.failures)} completeness failures"] if self.failures else []
        parts += [f"{len(self.weights)} different weights"] if self.weights else []
        if self.first_faulty is not None:
            parts.append(f"first faulty op {self.first_faulty.name} of the {self.first_faulty.side}")
        elif self.first_failing is not None:
            parts.append(f"the first failing {self.first_failing}")
        return ", ".join(parts)

    def _worst_points(self) -> list[dict[str, str]]:
        from lockstep.results_table import worst_points

        return worst_points(self)


# --- From JSON -----------------------------------------------------------------------------------------------------


def comparison_of(text: str, report: str) -> Comparison:
    """`text`: the JSON of a comparison; `report`: the same for the terminal."""
    result = _with_reports(build(Comparison, data := json.loads(text)), report, data)
    if result.replay is None:
        return result
    reference = _of_side(result.replay.reference, "reference")
    candidate = _of_side(result.replay.candidate, "candidate")
    ops = [{op.name: op for op in replay.points} if replay else {} for replay in (reference, candidate)]
    points = tuple(
        replace(point, reference_op=ops[0].get(point.name), candidate_op=ops[1].get(point.name))
        for point in result.points
    )
    return replace(result, points=points, replay=Replays(reference=reference, candidate=candidate))


def replay_of(text: str, report: str) -> Replay:
    """`text`: the JSON of a replay; `report`: the same for the terminal."""
    return _with_reports(build(Replay, data := json.loads(text)), report, data)


def _with_reports(result: _Result, report: str, data: dict[str, Any]) -> _Result:
    return replace(result, text=report, data=data)


def _of_side(replay: Replay | None, side: str) -> Replay | None:
    if replay is None:
        return None
    return replace(
        replay,
        findings=tuple(replace(finding, side=side) for finding in replay.findings),
        points=tuple(replace(point, side=side) for point in replay.points),
    )
