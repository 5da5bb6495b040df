"""`lockstep.compare`: the comparison of the command line, from Python. It needs the compiled part of the package."""

import json
import os
from collections.abc import Sequence
from typing import Any

from lockstep.errors import LockstepError

Path = str | os.PathLike[str]


def compare(
    reference: Path | Sequence[Path],
    candidate: Path | Sequence[Path],
    *,
    atol: float | None = None,
    rtol: float | None = None,
    points: str = "",
    layers: str = "",
) -> dict[str, Any]:
    """Compares two traces and returns everything that was found, as `lockstep compare --json` writes it.

    Several traces a side are the parts of a batch, or the ranks of one run. `points` ("attn_*,logits") and `layers`
    ("0,2-4") select. Numbers that JSON lacks are the strings "NaN", "Infinity" and "-Infinity".
    Raises LockstepError for what cannot be compared; a difference is part of the result.
    """
    try:
        from lockstep import _native
    except ImportError as error:
        raise LockstepError(
            f"lockstep.compare: expected the compiled part of the package, found none that can be imported ({error}); "
            "install the wheel, or use `lockstep compare`"
        ) from None
    try:
        text, _ = _native.compare(_paths(reference), _paths(candidate), atol, rtol, points, layers)
    except _native.NativeError as error:
        raise LockstepError(str(error)) from None
    return json.loads(text)


def _paths(traces: Path | Sequence[Path]) -> list[str]:
    return [os.fspath(path) for path in ([traces] if isinstance(traces, str | os.PathLike) else traces)]
