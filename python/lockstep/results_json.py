"""JSON objects as frozen dataclasses, by their annotations; and words from traces, made fit to be shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lockstep.errors import LockstepError

_T = TypeVar("_T")


def build(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """An object of dataclass `kind` from `data`.

    A field takes the key of its name, or of its metadata's "key", through its metadata's "read" where it has one. Keys
    that no field takes are left out; an absent one leaves the field's default. Raises LockstepError where neither is.
    """
    values = {}
    for name, key, hint, read, has_default in _plan(kind):  # type: ignore[arg-type]
        if key in data:
            values[name] = read(data[key]) if read else _convert(hint, data[key])
        elif not has_default:
            raise LockstepError(
                f"{kind.__name__}: expected {key!r} in the result, found {', '.join(data)}; are the Python files and "
                "the compiled part of one version?"
            )
    return kind(**values)


@cache
def _plan(kind: type) -> list[tuple[str, str, Any, Any, bool]]:
    """(field, key, type, reader, whether it has a default); looked up once, because a result has thousands."""
    hints = get_type_hints(kind)
    return [
        (
            item.name,
            item.metadata.get("key", item.name),
            hints[item.name],
            item.metadata.get("read"),
            item.default is not MISSING or item.default_factory is not MISSING,
        )
        for item in fields(kind)
    ]


def _convert(hint: Any, value: Any) -> Any:
    if isinstance(hint, UnionType):  # X | None
        return None if value is None else _convert(get_args(hint)[0], value)
    if get_origin(hint) is tuple:
        return tuple(_convert(get_args(hint)[0], item) for item in value)
    if hint is float:
        return float(value)  # also of "NaN", "Infinity" and "-Infinity"
    return build(hint, value) if hasattr(hint, "__dataclass_fields__") else value


def layer_of(layer: int) -> int | None:
    """-1 means outside the layers."""
    return layer if layer >= 0 else None


def layers_of(text: str) -> tuple[int, ...]:
    """ "0,2-4" -> (0, 2, 3, 4)."""
    ranges = [item.partition("-") for item in text.split(",") if item]
    return tuple(layer for low, _, high in ranges for layer in range(int(low), int(high or low) + 1))


def within_of(items: list[dict[str, Any]]) -> dict[float, float]:
    """[{"rtol", "atol", "share"}] -> {rtol: share}; both tolerances are the same number."""
    return {item["rtol"]: float(item["share"]) for item in items}


def shown(text: str, longest: int) -> str:
    """`text` in one line of `longest` characters, control characters, direction marks and the like as \\u{202E}."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    invisible = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return "".join(f"\\u{{{ord(c):04X}}}" if unicodedata.category(c) in invisible else c for c in text)
