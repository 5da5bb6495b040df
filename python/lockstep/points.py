"""The capture points: names, axes, ops and inputs, as in docs/points.md.

The table is data (points.json) generated from the C++ one, so that both sides cannot drift apart.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lockstep.errors import LockstepError

_LAYER_NAME = re.compile(r"layer_(0|[1-9][0-9]{0,5})_(.+)", re.DOTALL)


@dataclass(frozen=True)
class Point:
    """One row of the table. `inputs` are bare point names of the same layer (or model-wide ones)."""

    name: str
    per_layer: bool
    on_request: bool
    axes: tuple[str, ...]
    op: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]


@cache
def points() -> dict[str, Point]:
    """The table, bare name -> Point, in execution order."""
    rows = json.loads(Path(__file__).with_name("points.json").read_text(encoding="utf-8"))
    table = (
        Point(
            name=row["name"],
            per_layer=row["per_layer"],
            on_request=row["on_request"],
            axes=tuple(row["axes"]),
            op=row["op"],
            inputs=tuple(row["inputs"]),
            weights=tuple(row["weights"]),
        )
        for row in rows
    )
    return {point.name: point for point in table}


def point_name(name: str, layer: int | None = None) -> str:
    """Full tensor name: ("attn_q_rope", 3) -> "layer_3_attn_q_rope"; ("logits", None) -> "logits".

    Raises LockstepError for an unknown point, for a missing layer and for one too many.
    """
    point = points().get(name)
    if point is None:
        raise LockstepError(f"{name!r}: not a capture point; expected one of {', '.join(points())}")
    if point.per_layer != (layer is not None) or (layer is not None and layer < 0):
        expected = "a layer number >= 0" if point.per_layer else "no layer"
        raise LockstepError(f"{name}: expected {expected}, found {layer!r}")
    return name if layer is None else f"layer_{layer}_{name}"


def parse_name(name: str) -> tuple[str, int | None]:
    """("layer_3_attn_q_rope") -> ("attn_q_rope", 3); a name without a layer -> (name, None). Any name is allowed."""
    match = _LAYER_NAME.fullmatch(name)
    return (match[2], int(match[1])) if match else (name, None)


def names_for(num_layers: int, on_request: bool = False) -> list[str]:
    """All tensor names of a model with `num_layers` layers, in execution order; `on_request` adds those points too."""
    chosen = [point for point in points().values() if on_request or not point.on_request]
    first_layered = next(i for i, point in enumerate(chosen) if point.per_layer)
    before = [point.name for point in chosen[:first_layered]]
    after = [point.name for point in chosen[first_layered:] if not point.per_layer]
    layered = [point.name for point in chosen if point.per_layer]
    return before + [f"layer_{n}_{name}" for n in range(num_layers) for name in layered] + after
