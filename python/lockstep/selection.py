"""Which tensors, layers, steps and rows a trace is asked to hold."""

import os
import re
from dataclasses import dataclass, field

import numpy as np

from lockstep.errors import LockstepError
from lockstep.points import parse_name, points


def matches(pattern: str, name: str) -> bool:
    """Whether `name` matches `pattern`, in which * stands for any run of characters. Linear, whatever the pattern."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    *middle, last = rest
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


@dataclass(init=False, frozen=True)
class Selection:
    """What a trace is asked to hold, as the four strings of the format; an empty string selects everything."""

    points: str
    layers: str
    steps: str
    row_text: str
    _patterns: tuple[str, ...] = field(repr=False, compare=False)
    _layers: tuple[tuple[int, int], ...] = field(repr=False, compare=False)
    _steps: tuple[tuple[int, int], ...] = field(repr=False, compare=False)
    _positions: tuple[tuple[int, int], ...] = field(repr=False, compare=False)
    _last: int = field(repr=False, compare=False)

    def __init__(self, points: str = "", layers: str = "", steps: str = "", rows: str = "") -> None:
        """`points` "attn_*,logits", `layers` "0,2-4", `steps` "0,5-7", `rows` "last:16", positions "0-3,100", or both.

        Raises LockstepError for a string that does not parse.
        """
        last, ranges = _parse_rows(rows)
        values = {
            "points": points,
            "layers": layers,
            "steps": steps,
            "row_text": rows,
            "_patterns": _parse_patterns(points),
            "_layers": _parse_ranges("layers", layers),
            "_steps": _parse_ranges("steps", steps),
            "_positions": ranges,
            "_last": last,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_environment(cls) -> "Selection":
        """The selection of LOCKSTEP_POINTS, LOCKSTEP_LAYERS, LOCKSTEP_STEPS and LOCKSTEP_ROWS."""
        strings = {key: os.environ.get(f"LOCKSTEP_{key.upper()}", "") for key in ("points", "layers", "steps", "rows")}
        try:
            return cls(**strings)
        except LockstepError as error:
            raise LockstepError(f"{error} (from the environment, LOCKSTEP_*)") from None

    def as_dict(self) -> dict[str, str]:
        """The strings, as trace.json keeps them."""
        return {"points": self.points, "layers": self.layers, "steps": self.steps, "rows": self.row_text}

    def wants(self, name: str, step: int) -> bool:
        """Whether tensor `name` of step number `step` is selected. Points on request are wanted only by name."""
        base, layer = parse_name(name)
        if not _in_ranges(step, self._steps) or (layer is not None and not _in_ranges(layer, self._layers)):
            return False
        point = points().get(base)
        patterns = self._patterns or ("*",)
        if point is not None and point.on_request and layer is not None:
            patterns = tuple(pattern for pattern in patterns if "*" not in pattern)
        return any(matches(pattern, name) or matches(pattern, base) for pattern in patterns)

    def rows(self, positions: np.ndarray, sequences: np.ndarray) -> np.ndarray | None:
        """Indices, i32 [R], of the step's selected tokens, given positions and sequences [T]; None means all of them.

        Padding (sequence -1) is never among selected rows.
        """
        if not self._last and not self._positions:
            return None
        chosen = np.zeros(len(positions), bool)
        for low, high in self._positions:
            chosen |= (positions >= low) & (positions <= high)
        if self._last:
            for sequence in np.unique(sequences):
                chosen[np.flatnonzero(sequences == sequence)[-self._last :]] = True
        return np.flatnonzero(chosen & (sequences >= 0)).astype(np.int32)


def _split(what: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    if "" in items:
        raise LockstepError(f"selection {what}={text!r}: expected items between the commas, found an empty one")
    return items


def _parse_patterns(text: str) -> tuple[str, ...]:
    return tuple(_split("points", text))


def _parse_ranges(what: str, text: str) -> tuple[tuple[int, int], ...]:
    """ "0,2-4" -> ((0, 0), (2, 4))."""
    ranges = []
    for item in _split(what, text):
        match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", item)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            or_last = ' or "last:16"' if what == "rows" else ""
            expected = f'expected numbers and ranges as "0,2-4"{or_last}'
            raise LockstepError(f"selection {what}={text!r}: {expected}, found {item!r}")
        ranges.append((low, high))
    return tuple(ranges)


def _parse_rows(text: str) -> tuple[int, tuple[tuple[int, int], ...]]:
    """ "last:16,0-3" -> (16, ((0, 3),)); without a last: the number is 0."""
    lasts = [re.fullmatch(r"last:0*([1-9][0-9]{0,9})", item) for item in _split("rows", text)]
    ranges = ",".join(item for item, last in zip(_split("rows", text), lasts, strict=True) if not last)
    return max((int(last[1]) for last in lasts if last), default=0), _parse_ranges("rows", ranges)


def _in_ranges(value: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return not ranges or any(low <= value <= high for low, high in ranges)
