"""Results as tables: data frames, and the few worst rows for a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lockstep.errors import LockstepError

if TYPE_CHECKING:
    import pandas as pd

    from lockstep.results import Comparison, OpError, PointDifference, Replay

_SHOWN = 12
_NAN = float("nan")
# Columns whose type cannot be told from the values, because they may be None, or there may be no rows.
_TYPES = {
    "layer": "Int64",
    "worst_sequence": "Int64",
    "worst_position": "Int64",
    "worst_head": "Int64",
    "worst_channel": "Int64",
}


def comparison_frame(result: Comparison) -> pd.DataFrame:
    """Columns as in docs/python.md; float64 for figures, Int64 where there may be none, bool, string."""
    return _frame([_point_row(point) for point in result.points])


def replay_frame(result: Replay) -> pd.DataFrame:
    return _frame([_op_row(op) for op in result.points])


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError:
        raise LockstepError(
            "to_pandas: expected the package pandas, found none; pip install pandas, or read .points"
        ) from None
    frame = pd.DataFrame(rows)
    types = {column: kind for column, kind in _TYPES.items() if column in frame}
    strings = {column: "string" for column, value in (rows[0] if rows else {}).items() if isinstance(value, str)}
    return frame.astype({**types, **strings})


def _point_row(point: PointDifference) -> dict[str, Any]:
    plain = ("name", "layer", "point", "diff_class", "rows", "elements", "bit_identical", "max_abs", "mean_abs")
    more = ("max_rel", "mean_rel", "cosine", "relative_l2", "snr_db", "best_scale")
    return {
        **{key: getattr(point, key) for key in (*plain, *more)},
        "token_l2": point.worst.token_relative_l2,
        "min_token_cosine": point.worst.min_token_cosine,
        "worst_sequence": point.worst.element.sequence,
        "worst_position": point.worst.element.position,
        "worst_head": point.worst.element.head,
        "worst_channel": point.worst.element.channel,
        "worst_reference": point.worst.reference,
        "worst_candidate": point.worst.candidate,
        "mask_mismatches": point.mask_mismatches,
        "non_finite_mismatches": point.non_finite_mismatches,
        "bound": _NAN if point.bound is None else point.bound,
        "reference_op_error": _row_error(point.reference_op),
        "reference_op_verdict": point.reference_op.verdict if point.reference_op else "",
        "candidate_op_error": _row_error(point.candidate_op),
        "candidate_op_verdict": point.candidate_op.verdict if point.candidate_op else "",
        "fails": point.fails,
        "reasons": "; ".join(point.reasons),
    }


def _op_row(op: OpError) -> dict[str, Any]:
    return {
        **{key: getattr(op, key) for key in ("name", "layer", "point", "op", "verdict", "why", "bridged")},
        **{key: getattr(op, key) for key in ("rows", "rows_not_observable", "rows_inherited", "elements")},
        "worst_row_error": _row_error(op),
        "worst_head_error": op.worst_head.error if op.worst_head else _NAN,
        "whole": _NAN if op.whole is None else op.whole,
        "max": op.max.error if op.max else _NAN,
        "scale": op.scale.value if op.scale else _NAN,
        "non_finite": op.non_finite,
    }


def _row_error(op: OpError | None) -> float:
    return op.worst_row.error if op and op.worst_row else _NAN


# --- For a notebook ------------------------------------------------------------------------------------------------


def worst_points(result: Comparison) -> list[dict[str, str]]:
    """The failing points in execution order, else those with the largest differences."""
    failing = [point for point in result.points if point.fails]
    by_size = sorted(result.points, key=lambda point: -_sortable(point.worst.token_relative_l2))
    return [
        {
            "point": point.name,
            "class": point.diff_class,
            "max_abs": f"{point.max_abs:.2e}",
            "cosine": f"{point.cosine:.6f}",
            "token_l2": f"{point.worst.token_relative_l2:.2e}",
            "op err ref": _op_cell(point.reference_op),
            "op err cand": _op_cell(point.candidate_op),
        }
        for point in (failing or by_size)[:_SHOWN]
    ]


def worst_ops(result: Replay) -> list[dict[str, str]]:
    """The faulty ops in execution order, else those with the largest errors."""
    faulty = [op for op in result.points if op.verdict == "faulty"]
    by_size = sorted(result.points, key=lambda op: -_sortable(_row_error(op)))
    return [{"point": op.name, "op": op.op, "op err": _op_cell(op)} for op in _first(faulty or by_size)]


def _first(ops: Iterable[OpError]) -> list[OpError]:
    return list(ops)[:_SHOWN]


def _op_cell(op: OpError | None) -> str:
    if op is None:
        return "-"
    return f"{op.worst_row.error:.2g} {op.verdict}" if op.worst_row else op.verdict


def _sortable(value: float) -> float:
    return float("inf") if value != value else value
