"""`lockstep.compare` and `lockstep.replay`: the commands of these names. They need the compiled part of the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from lockstep.errors import LockstepError
from lockstep.results import Comparison, Replay, comparison_of, replay_of

Path = str | os.PathLike[str]


def compare(
    reference: Path | Sequence[Path],
    candidate: Path | Sequence[Path],
    *,
    model: Path | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    points: str = "",
    layers: str = "",
) -> Comparison:
    """Compares two traces, as `lockstep compare` does; with the checkpoint `model`, also judges every op of both sides.

    Several traces a side are the parts of a batch, or the ranks of one run. `atol`, `rtol` are a tolerance of your own;
    `points` ("attn_*,logits") and `layers` ("0,2-4") select.
    Raises LockstepError for what cannot be compared; a difference is part of the result.

    >>> result = lockstep.compare("py.trace", "bad.trace", model="models/tiny-qwen3")
    >>> result.verdict, result.exit_code
    ('different', 1)
    >>> finding = result.findings[0]
    >>> finding.side, finding.names, finding.cause
    ('candidate', ('layer_2_mlp_down_proj',), 'values-scaled')
    >>> result.first_faulty.name
    'layer_2_mlp_down_proj'
    >>> lockstep.compare("py.trace", "cpp.trace", atol=1e-3, points="logits").verdict
    'same'
    """
    return comparison_of(
        *_call("compare", _paths(reference), _paths(candidate), _path(model), atol, rtol, points, layers)
    )


def replay(trace: Path | Sequence[Path], model: Path, *, points: str = "", layers: str = "") -> Replay:
    """Recomputes every op of a trace in float64 and judges each, as `lockstep replay` does; needs no reference.

    Raises LockstepError for what cannot be replayed; a faulty op is part of the result.

    >>> lockstep.replay("cpp.trace", "models/tiny-qwen3").verdict
    'clean'
    >>> result = lockstep.replay("bad.trace", "models/tiny-qwen3")
    >>> [point.name for point in result.points if point.verdict == "faulty"]
    ['layer_2_mlp_down_proj']
    """
    return replay_of(*_call("replay", _paths(trace), os.fspath(model), points, layers))


def _call(function: str, *arguments: Any) -> tuple[str, str]:
    """(json, text) of the compiled function."""
    native = _native_of(function)
    try:
        result: tuple[str, str] = getattr(native, function)(*arguments)
        return result
    except native.NativeError as error:
        raise LockstepError(str(error)) from None


def _native_of(function: str) -> ModuleType:
    try:
        from lockstep import _native
    except ImportError as error:
        raise LockstepError(
            f"lockstep.{function}: expected the compiled part of the package, found none that can be imported "
            f"({error}); install the wheel, or use `lockstep {function}`"
        ) from None
    return _native


def _path(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _paths(traces: Path | Sequence[Path]) -> list[str]:
    return [os.fspath(path) for path in ([traces] if isinstance(traces, str | os.PathLike) else traces)]
