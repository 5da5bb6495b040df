"""What writer and reader of traces share: constants, checks of names and shapes, the lock, strict JSON."""

import fcntl
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import LockstepError
from lockstep.selection import matches

FORMAT = "lockstep-trace"
VERSION = 1
STEP_TENSORS = ("positions", "sequences", "input_ids")
STEP_FILE = re.compile(r"step-\d{6,}(\.rank\d+)?(\.\d+)?\.safetensors(\.tmp)?")

# safetensors name -> (bytes an element, numpy dtype of the bits, torch dtype, dtype in ml_dtypes where numpy has none)
DTYPES: dict[str, tuple[int, str, str, str | None]] = {
    "BOOL": (1, "?", "bool", None),
    "U8": (1, "u1", "uint8", None),
    "I8": (1, "i1", "int8", None),
    "U16": (2, "<u2", "uint16", None),
    "I16": (2, "<i2", "int16", None),
    "U32": (4, "<u4", "uint32", None),
    "I32": (4, "<i4", "int32", None),
    "U64": (8, "<u8", "uint64", None),
    "I64": (8, "<i8", "int64", None),
    "F16": (2, "<f2", "float16", None),
    "F32": (4, "<f4", "float32", None),
    "F64": (8, "<f8", "float64", None),
    "BF16": (2, "<u2", "bfloat16", "bfloat16"),
    "F8_E4M3": (1, "u1", "float8_e4m3fn", "float8_e4m3fn"),
    "F8_E5M2": (1, "u1", "float8_e5m2", "float8_e5m2"),
}


def is_trace_file(name: str) -> bool:
    """Whether a directory entry of this name belongs to a trace."""
    return name in ("trace.json", "trace.json.tmp") or STEP_FILE.fullmatch(name) is not None


def lock(path: Path, fd: int, kind: int) -> None:
    """flock() that does not wait. Raises LockstepError if a writer holds the directory."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockstepError(
            f"{path}: the trace is being written by a process that still runs; wait for it to close the trace"
        ) from None
    except OSError as error:
        raise LockstepError(f"{path}: cannot lock the directory: {error.strerror}") from error


def parse_json(text: bytes) -> Any:
    """Strict JSON in UTF-8: no duplicate keys, no NaN, bounded depth. Raises ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"duplicate key {twice!a}")
        return result

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Opens a regular file; a FIFO or device must not make the reader wait. Raises OSError or LockstepError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise LockstepError(f"{path}: expected a regular file")
    return fd, status


def entry_for(name: str, patterns: Mapping[str, Any]) -> Any:
    """The value whose pattern fits `name`: the exact name, else the pattern with most letters; None if none fits."""
    if name in patterns:
        return patterns[name]
    fitting = [pattern for pattern in patterns if matches(pattern, name)]
    return patterns[min(fitting, key=lambda p: (p.count("*") - len(p), p))] if fitting else None


def _axes(name: str, tensors: Mapping[str, Any]) -> list[str] | None:
    """Axis names in stored order where trace.json's `tensors` declares them for `name`."""
    return (entry_for(name, tensors) or {}).get("axes")


def axis_index(name: str, wanted: str, default: int, shape: tuple[int, ...], tensors: Mapping[str, Any]) -> int:
    """Index of axis `wanted` of tensor `name`; raises LockstepError where the shape cannot have it."""
    axes = _axes(name, tensors)
    if axes is not None and len(axes) != len(shape):
        raise LockstepError(f"{name}: expected axes {axes} as declared, found shape {list(shape)}")
    if not shape:
        raise LockstepError(f"{name}: expected a token axis, found a scalar")
    return axes.index(wanted) if axes and wanted in axes else default % len(shape)


def expect(condition: bool, where: str, expected: str, found: Any) -> None:
    if not condition:
        text = ascii(found)
        raise LockstepError(f"{where}: expected {expected}, found {text if len(text) < 80 else text[:77] + '...'}")


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def check_name(name: Any) -> None:
    """A tensor or file name that can be printed and stored: text without control characters."""
    if not isinstance(name, str) or not name:
        raise LockstepError(f"expected a name, found {name!r}")
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name):
        raise LockstepError(f"{name!a}: a name must not hold control characters or lone surrogates")


def check_tokens(where: str, positions: np.ndarray, sequences: np.ndarray, input_ids: np.ndarray | None) -> None:
    """Positions, sequences and input_ids, i32 [T], make sense together."""
    for name, array in (("sequences", sequences), ("input_ids", input_ids)):
        if array is not None and array.shape != positions.shape:
            raise LockstepError(f"{where}: expected {name} of shape {list(positions.shape)}, found {list(array.shape)}")
        if array is not None and array.size and array.min() < -1:
            raise LockstepError(f"{where}: {name}: expected values >= -1, found {array.min()}")
    if ((positions < 0) & (sequences >= 0)).any():
        raise LockstepError(f"{where}: expected positions >= 0, found {positions[sequences >= 0].min()}")


def check_rows(name: str, rows: np.ndarray, tokens: int) -> None:
    """`rows` i32 [R]: indices into the step's tokens, none twice."""
    if rows.size and (rows.min() < 0 or rows.max() >= tokens):
        bad = rows[(rows < 0) | (rows >= tokens)][0]
        raise LockstepError(f"rows:{name}: expected indices into the step's {tokens} tokens, found {bad}")
    if np.unique(rows).size != rows.size:
        raise LockstepError(f"rows:{name}: a token occurs twice")


def check_keys(name: str, keys_shape: tuple[int, ...], rows: int, keys: int) -> None:
    if keys_shape != (rows, keys):
        raise LockstepError(f"keys:{name}: expected shape {[rows, keys]} as of the tensor, found {list(keys_shape)}")
