"""Traces: writer, reader and selection of docs/trace-format.md.

A step file is a safetensors file that stays valid while it grows. Its header region is reserved in front, as blanks
that end in the closing brace; a tensor's data is appended first, and only then is its header entry written over blanks,
by one write inside one 4 KiB page. Rewriting the whole header is simpler and was rejected: it is not atomic, and a kill
tears it. The cost is HEADER_BYTES a step file.

The reader believes nothing: it checks every offset, shape, dtype and name before it maps a byte.
"""

import errno
import fcntl
import json
import os
import re
import stat
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from lockstep.errors import LockstepError
from lockstep.points import parse_name, points

if TYPE_CHECKING:
    import torch

FORMAT = "lockstep-trace"
VERSION = 1
PAGE = 4096
# Length word and header region of a step file: room for about 1000 tensors; more continue in a second file.
HEADER_BYTES = 128 * 1024
_MAX_STEP_HEADER = 100_000_000  # the limit of the safetensors package
_MAX_TRACE_JSON = 256 << 20
_MAX_AXES = 32

# safetensors name -> (bytes an element, numpy dtype of the bits, torch dtype, dtype in ml_dtypes where numpy has none)
_DTYPES: dict[str, tuple[int, str, str, str | None]] = {
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
_BY_NAME = {names[2]: dtype for dtype, names in _DTYPES.items()}  # numpy, ml_dtypes and torch agree on these names
_STEP_TENSORS = ("positions", "sequences", "input_ids")
_STEP_FILE = re.compile(r"step-\d{6,}(\.rank\d+)?(\.\d+)?\.safetensors(\.tmp)?")


# --- Selection ------------------------------------------------------------------------------------------------------


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


# --- What writer and reader share -----------------------------------------------------------------------------------


def _entry_for(name: str, patterns: Mapping[str, Any]) -> Any:
    """The value whose pattern fits `name`: the exact name, else the pattern with most letters; None if none fits."""
    if name in patterns:
        return patterns[name]
    fitting = [pattern for pattern in patterns if matches(pattern, name)]
    return patterns[min(fitting, key=lambda p: (p.count("*") - len(p), p))] if fitting else None


def _axes(name: str, tensors: Mapping[str, Any]) -> list[str] | None:
    """Axis names in stored order where trace.json's `tensors` declares them for `name`."""
    return (_entry_for(name, tensors) or {}).get("axes")


def _axis(name: str, wanted: str, default: int, shape: tuple[int, ...], tensors: Mapping[str, Any]) -> int:
    """Index of axis `wanted` of tensor `name`; raises LockstepError where the shape cannot have it."""
    axes = _axes(name, tensors)
    if axes is not None and len(axes) != len(shape):
        raise LockstepError(f"{name}: expected axes {axes} as declared, found shape {list(shape)}")
    if not shape:
        raise LockstepError(f"{name}: expected a token axis, found a scalar")
    return axes.index(wanted) if axes and wanted in axes else default % len(shape)


def _check_name(name: Any) -> None:
    """A tensor or file name that can be printed and stored: text without control characters."""
    if not isinstance(name, str) or not name:
        raise LockstepError(f"expected a name, found {name!r}")
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name):
        raise LockstepError(f"{name!a}: a name must not hold control characters or lone surrogates")


def _check_tokens(where: str, positions: np.ndarray, sequences: np.ndarray, input_ids: np.ndarray | None) -> None:
    """Positions, sequences and input_ids, i32 [T], make sense together."""
    for name, array in (("sequences", sequences), ("input_ids", input_ids)):
        if array is not None and array.shape != positions.shape:
            raise LockstepError(f"{where}: expected {name} of shape {list(positions.shape)}, found {list(array.shape)}")
        if array is not None and array.size and array.min() < -1:
            raise LockstepError(f"{where}: {name}: expected values >= -1, found {array.min()}")
    if ((positions < 0) & (sequences >= 0)).any():
        raise LockstepError(f"{where}: expected positions >= 0, found {positions[sequences >= 0].min()}")


def _check_rows(name: str, rows: np.ndarray, tokens: int) -> None:
    """`rows` i32 [R]: indices into the step's tokens, none twice."""
    if rows.size and (rows.min() < 0 or rows.max() >= tokens):
        bad = rows[(rows < 0) | (rows >= tokens)][0]
        raise LockstepError(f"rows:{name}: expected indices into the step's {tokens} tokens, found {bad}")
    if np.unique(rows).size != rows.size:
        raise LockstepError(f"rows:{name}: a token occurs twice")


def _check_keys(name: str, keys_shape: tuple[int, ...], rows: int, keys: int) -> None:
    if keys_shape != (rows, keys):
        raise LockstepError(f"keys:{name}: expected shape {[rows, keys]} as of the tensor, found {list(keys_shape)}")


# --- Writing --------------------------------------------------------------------------------------------------------


def _is_torch(array: Any) -> bool:
    """Whether `array` is a torch tensor, found out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _int32(what: str, values: Any, dims: int = 1) -> np.ndarray:
    """`values` (array, tensor or list of integers) as i32 with `dims` axes; raises LockstepError if they are not."""
    try:
        array = np.asarray(values.detach().cpu().numpy() if _is_torch(values) else values)
    except (TypeError, ValueError) as error:
        raise LockstepError(f"{what}: expected integers with {dims} axes: {error}") from None
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != dims or array.dtype.kind not in "iu":
        raise LockstepError(f"{what}: expected integers with {dims} axes, found {array.dtype} {list(array.shape)}")
    if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        raise LockstepError(f"{what}: expected 32-bit integers, found {array.min()} to {array.max()}")
    return np.ascontiguousarray(array.astype("<i4"))


def _take(array: Any, indices: np.ndarray, axis: int) -> Any:
    """Rows `indices` along `axis` of a numpy or torch array; a torch one is cut before it leaves its device."""
    if not _is_torch(array):
        return np.take(array, indices, axis=axis)
    torch = sys.modules["torch"]
    return array.detach().index_select(axis, torch.as_tensor(indices, dtype=torch.int64, device=array.device))


def _dtype_of(name: str, array: Any) -> str:
    """safetensors dtype of a numpy or torch array that can be stored; LockstepError if it cannot."""
    if _is_torch(array):
        if str(array.layout) != "torch.strided" or array.is_quantized or array.device.type == "meta":
            raise LockstepError(f"{name}: expected a dense tensor with data, found {array.layout} on {array.device}")
    elif not isinstance(array, np.ndarray):
        raise LockstepError(f"{name}: expected a numpy array or a torch tensor, found {type(array).__name__}")
    plain = str(array.dtype).removeprefix("torch.") if _is_torch(array) else array.dtype.name
    if plain not in _BY_NAME:
        raise LockstepError(f"{name}: dtype {plain} cannot be stored; expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[plain]


def _bytes_of(array: Any) -> memoryview:
    """The elements in row-major order, little-endian, in native dtype."""
    if 0 in array.shape:
        return memoryview(b"")  # torch refuses to view an empty tensor with numpy's strides of 0
    if _is_torch(array):
        torch = sys.modules["torch"]
        packed = array.detach().resolve_neg().cpu().contiguous()
        # An axis of length 1 may keep any stride and still count as contiguous, yet view() refuses it.
        packed = packed.as_strided((packed.numel(),), (1,)).view(torch.uint8).numpy()
    else:
        little = array.dtype if array.dtype.byteorder != ">" else array.dtype.newbyteorder("<")
        packed = np.ascontiguousarray(array, dtype=little).reshape(-1).view(np.uint8)
    return memoryview(packed)


def _is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class _StepFile:
    """One growing safetensors file. A group of tensors is appended whole or not at all."""

    def __init__(self, path: Path, first: list[tuple[str, Any]]) -> None:
        """Creates `path` with the tensors `first` in it; nothing is there under that name if this fails."""
        self.path = path
        self._region = HEADER_BYTES
        self._data_bytes = 0
        opening = b'{"__metadata__":{"format":"lockstep-step"}'
        self._cursor = 8 + len(opening)
        length = (self._region - 8).to_bytes(8, "little")
        header = length + opening + b" " * (self._region - 8 - len(opening) - 1) + b"}"
        temporary = path.with_name(path.name + ".tmp")
        self._fd = -1
        try:
            self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            self._write_all("header", memoryview(header), 0)
            self.append(first)
            os.rename(temporary, path)
        except BaseException as error:
            self.close()
            with suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise LockstepError(f"{path}: cannot create: {error.strerror}") from error
            raise

    def append(self, group: list[tuple[str, Any]]) -> bool:
        """Writes the tensors' data, then all their entries by one write. False: no room is left in the header region.

        Raises LockstepError if the disk is full or fails; the file then is as it was before.
        """
        entries, at = b"", self._data_bytes
        for name, array in group:
            dtype, shape = _dtype_of(name, array), [int(n) for n in array.shape]
            end = at + int(np.prod(shape, dtype=object)) * _DTYPES[dtype][0]
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            entries += f",{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}".encode()
            at = end
        place = self._place(len(entries), group[0][0]) if group else self._cursor
        if place is None:
            return False
        before = self._data_bytes
        try:
            for name, array in group:
                self._data_bytes += self._write_all(name, _bytes_of(array), self._region + self._data_bytes)
            self._write_entries(entries, place)
        except BaseException:
            self._data_bytes = before
            with suppress(OSError):
                os.ftruncate(self._fd, self._region + before)
            raise
        self._cursor = place + len(entries)
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        self._fd = -1

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def _place(self, length: int, name: str) -> int | None:
        """Where `length` bytes of entries go, so that they do not cross a page; None if the region is full."""
        if length > PAGE:
            raise LockstepError(f"{name[:60]}…: name too long: its entry takes {length} bytes, {PAGE} is the most")
        place = self._cursor
        if place % PAGE + length > PAGE:
            place += PAGE - place % PAGE
        return place if place + length < self._region else None  # the last byte is the closing brace

    def _write_entries(self, entries: bytes, place: int) -> None:
        try:
            os.pwrite(self._fd, entries, place)
        except OSError as error:
            raise self._failed("header", error, len(entries)) from error

    def _write_all(self, name: str, data: memoryview, at: int) -> int:
        """Writes `data` at offset `at`, returns its length."""
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done : done + (1 << 30)], at + done)
            except OSError as error:
                raise self._failed(name, error, len(data) - done) from error
        return done

    def _failed(self, name: str, error: OSError, missing: int) -> LockstepError:
        if not _is_disk_full(error):
            return LockstepError(f"{self.path}: cannot write {name}: {error.strerror}")
        return LockstepError(
            f"{self.path}: disk full while writing {name}: {missing} bytes are missing; all earlier tensors are whole; "
            "free space, or select less (LOCKSTEP_POINTS, LOCKSTEP_LAYERS, LOCKSTEP_STEPS, LOCKSTEP_ROWS)"
        )


class StepWriter:
    """One forward call. Made by TraceWriter.begin_step; a context manager. Used by one thread at a time."""

    def __init__(self, trace: "TraceWriter", index: int, rank: int, tokens: tuple[np.ndarray, ...]) -> None:
        self.index = index
        self.rank = rank
        self._trace = trace
        self._num_tokens = tokens[0].size
        self._selected = trace.selection.rows(tokens[0], tokens[1])
        self._recorded: set[str] = set()
        self._num_files = 1
        self._file = _StepFile(trace.path / self.file_name(0), list(zip(_STEP_TENSORS, tokens, strict=False)))

    def file_name(self, part: int) -> str:
        """Name of this step's file number `part`."""
        rank = f".rank{self.rank}" if self.rank else ""
        return f"step-{self.index:06d}{rank}{f'.{part}' if part else ''}.safetensors"

    def wants(self, name: str) -> bool:
        """Whether the selection asks for `name` in this step; record() ignores what it does not ask for."""
        return self._trace.selection.wants(name, self.index)

    def record(self, name: str, array: Any, rows: Any = None, keys: Any = None) -> None:
        """Writes a numpy array or torch tensor of any strides; once this returns, a crash does not lose it.

        `array`: the token axis (first, or as `tensors` says) has T rows, or R with `rows`, i32 [R]: indices into the
        step's tokens. `keys`, i32 [R, K]: absolute key positions of an attention tensor where they are not 0, 1, 2, …
        Raises LockstepError, which trace.json then lists too: a name recorded twice, a shape that does not fit the
        step, a dtype that cannot be stored, a full disk.
        """
        try:
            self._record(name, array, rows, keys)
        except LockstepError as error:
            self._trace.add_error(f"step {self.index}: {error}")
            raise

    def end(self) -> None:
        """Closes the step's file. Further calls do nothing."""
        self._file.close()
        self._trace.forget(self)

    def __enter__(self) -> "StepWriter":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.end()

    def _record(self, name: str, array: Any, rows: Any, keys: Any) -> None:
        _check_name(name)
        if name in _STEP_TENSORS or name == "__metadata__" or name.startswith(("rows:", "keys:")):
            raise LockstepError(f"{name}: the name is taken by the format; give it to begin_step, or as rows= or keys=")
        if not self.wants(name):
            return
        if name in self._recorded:
            raise LockstepError(f"{name}: recorded twice in one step; a second run of the layer needs its own step")
        if self._file.closed:
            raise LockstepError(f"{name}: recorded after the end of its step")
        self._append(self._group(name, array, rows, keys))
        self._recorded.add(name)

    def _group(self, name: str, array: Any, rows: Any, keys: Any) -> list[tuple[str, Any]]:
        """The tensors that one record writes, reduced to the selected rows: rows:NAME, keys:NAME, NAME."""
        _dtype_of(name, array)
        shape, tensors = tuple(array.shape), self._trace.tensors
        axis = _axis(name, "token", 0, shape, tensors)
        rows = None if rows is None else _int32(f"rows:{name}", rows)
        count = self._num_tokens if rows is None else rows.size
        if shape[axis] != count:
            expected = f"expected {count} rows along axis {axis}"
            raise LockstepError(f"{name}: {expected}, found shape {list(shape)}; other rows need rows=")
        if rows is not None:
            _check_rows(name, rows, self._num_tokens)
        if keys is not None:
            keys = _int32(f"keys:{name}", keys, dims=2)
            _check_keys(name, keys.shape, count, shape[_axis(name, "key", -1, shape, tensors)])
        if self._selected is not None:
            kept = self._selected if rows is None else np.flatnonzero(np.isin(rows, self._selected))
            array, keys = _take(array, kept, axis), None if keys is None else keys[kept]
            rows = kept if rows is None else rows[kept]
        extra = [(f"rows:{name}", rows), (f"keys:{name}", keys)]
        return [(key, value) for key, value in extra if value is not None] + [(name, array)]

    def _append(self, group: list[tuple[str, Any]]) -> None:
        if self._file.append(group):
            return
        file = self.file_name(self._num_files)
        continuation = _StepFile(self._trace.path / file, [])
        try:
            self._trace.list_file(self, file)
        except LockstepError:
            continuation.close()
            continuation.path.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file, self._num_files = continuation, self._num_files + 1
        if not self._file.append(group):
            raise LockstepError(f"{group[-1][0]}: its entry does not fit an empty header of {HEADER_BYTES} bytes")


class TraceWriter:
    """Writes a trace directory; a context manager. Safe to use from several threads, each with steps of its own."""

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        producer: str,
        version: str = "",
        model_type: str = "qwen3",
        config: dict,
        storage: str = "F32",
        operands: str | None = None,
        accumulate: str = "F32",
        cache: str | None = None,
        overrides: dict | None = None,
        points: Iterable[str] = (),
        not_observable: Iterable[str] = (),
        selection: Selection | None = None,
        tensors: dict | None = None,
        weights: dict | None = None,
        rank: int = 0,
    ) -> None:
        """Makes the directory `path`, or takes over an empty one or an older trace, and locks it.

        `points` are promised, `not_observable` are patterns, `selection` defaults to the environment's LOCKSTEP_*,
        `tensors` is {pattern: {axes, layout, shard, partial}}, `weights` is {name: fingerprint}.
        Raises LockstepError if the directory holds something else, is being written, or cannot be written.
        """
        self.path = Path(path)
        self.selection = Selection.from_environment() if selection is None else selection
        self.tensors = tensors or {}
        self.rank = rank
        arithmetic = {
            "storage": storage,
            "operands": operands or storage,
            "accumulate": accumulate,
            "cache": cache or storage,
            "overrides": overrides or {},
        }
        self._meta = {
            "format": FORMAT,
            "version": VERSION,
            "producer": {"name": producer, "version": version},
            "model": {"type": model_type, "config": config},
            "arithmetic": arithmetic,
            "points": list(points),
            "not_observable": list(not_observable),
            "selection": self.selection.as_dict(),
            "weights": weights or {},
            "tensors": self.tensors,
            "rank": rank,
            "errors": [],
            "closed": False,
            "steps": [],
        }
        # A trace that could not be read again must not replace one that can.
        _check_meta(json.loads(_to_json(self._meta)), str(self.path))
        self._mutex = threading.RLock()
        self._open_steps: list[StepWriter] = []
        self._next_step: dict[int, int] = {}
        self._lock_fd = claim(self.path)
        try:
            self._write_meta()
            for name in os.listdir(self.path):
                if _STEP_FILE.fullmatch(name):
                    os.unlink(self.path / name)
        except BaseException as error:
            self._unlock()
            if isinstance(error, OSError):
                raise LockstepError(f"{self.path}: cannot replace the old trace: {error}") from error
            raise

    def begin_step(
        self, input_ids: Any, positions: Any, sequences: Any, phase: str = "prefill", rank: int | None = None
    ) -> StepWriter:
        """Starts one forward call. `positions` and `sequences`, integers [T]; `input_ids` [T] or None; T may be 0.

        `phase` is "prefill" or "decode". The n-th step of each rank belongs to the same forward call.
        Raises LockstepError for arrays that do not fit, a closed trace, a full disk.
        """
        with self._mutex:
            try:
                return self._begin_step(input_ids, positions, sequences, phase, self.rank if rank is None else rank)
            except LockstepError as error:
                self.add_error(str(error))
                raise

    def close(self) -> None:
        """Ends open steps, marks the trace as closed and unlocks it. Further calls do nothing."""
        self._finish(closed=True)

    def add_error(self, text: str) -> None:
        """Lists a failure in trace.json, now if the disk lets us, else at close()."""
        with self._mutex:
            self._meta["errors"].append(text)
            if self._lock_fd >= 0:
                with suppress(LockstepError):
                    self._write_meta()

    def list_file(self, step: StepWriter, file: str) -> None:
        """Adds a file of `step` to trace.json. Raises LockstepError and leaves trace.json as it was if that fails."""
        with self._mutex:
            files = self._meta["steps"][step.index]["files"]
            files.append({"file": file, "rank": step.rank})
            try:
                self._write_meta()
            except LockstepError:
                files.pop()
                raise

    def forget(self, step: StepWriter) -> None:
        """A step has ended."""
        with self._mutex:
            if step in self._open_steps:
                self._open_steps.remove(step)

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            self.add_error(f"stopped by {kind.__name__}: {value}")
        self._finish(closed=kind is None)

    def _begin_step(self, input_ids: Any, positions: Any, sequences: Any, phase: str, rank: int) -> StepWriter:
        if self._lock_fd < 0:
            raise LockstepError(f"{self.path}: the trace is closed")
        if phase not in ("prefill", "decode"):
            raise LockstepError(f'phase: expected "prefill" or "decode", found {phase!r}')
        if not isinstance(rank, int) or rank < 0:
            raise LockstepError(f"rank: expected an integer >= 0, found {rank!r}")
        index, steps = self._next_step.get(rank, 0), self._meta["steps"]
        if index < len(steps) and steps[index]["phase"] != phase:
            raise LockstepError(f"step {index}: rank {rank} says {phase}, another rank {steps[index]['phase']}")
        tokens = (_int32("positions", positions), _int32("sequences", sequences))
        tokens += () if input_ids is None else (_int32("input_ids", input_ids),)
        _check_tokens(f"step {index}", *tokens, *(() if len(tokens) == 3 else (None,)))
        step = StepWriter(self, index, rank, tokens)
        if index == len(steps):
            steps.append({"phase": phase, "files": []})
        try:
            self.list_file(step, step.file_name(0))
        except LockstepError:
            step.end()
            (self.path / step.file_name(0)).unlink(missing_ok=True)
            if not steps[index]["files"]:
                steps.pop()
            raise
        self._next_step[rank] = index + 1
        self._open_steps.append(step)
        return step

    def _finish(self, closed: bool) -> None:
        with self._mutex:
            if self._lock_fd < 0:
                return
            for step in list(self._open_steps):
                step.end()
            try:
                self._meta["closed"] = closed
                self._write_meta()
            finally:
                self._unlock()

    def _write_meta(self) -> None:
        """Replaces trace.json whole."""
        path, temporary = self.path / "trace.json", self.path / "trace.json.tmp"
        text = _to_json(self._meta)
        try:
            temporary.write_bytes(text)
            os.rename(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            full = f": disk full, {len(text)} bytes are missing" if _is_disk_full(error) else f": {error.strerror}"
            raise LockstepError(f"{path}: cannot write{full}") from error

    def _unlock(self) -> None:
        os.close(self._lock_fd)
        self._lock_fd = -1


def _to_json(meta: dict) -> bytes:
    """One key a line, so that people can read it. Raises LockstepError for values that JSON does not have."""
    try:
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in meta.items()]
    except (TypeError, ValueError, RecursionError) as error:
        raise LockstepError(f"trace.json: expected values that JSON can hold: {error}") from None
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def claim(path: Path) -> int:
    """Makes and locks the directory, checks that a trace may be written there; returns the lock's descriptor."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LockstepError(f"{path}: cannot make a trace directory: {error.strerror}") from error
    try:
        _lock(path, fd, fcntl.LOCK_EX)
        check_replaceable(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(path: Path, fd: int, kind: int) -> None:
    """flock() that does not wait. Raises LockstepError if a writer holds the directory."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockstepError(
            f"{path}: the trace is being written by a process that still runs; wait for it to close the trace"
        ) from None
    except OSError as error:
        raise LockstepError(f"{path}: cannot lock the directory: {error.strerror}") from error


def is_trace_file(name: str) -> bool:
    """Whether a directory entry of this name belongs to a trace."""
    return name in ("trace.json", "trace.json.tmp") or _STEP_FILE.fullmatch(name) is not None


def check_replaceable(path: Path) -> None:
    """Raises LockstepError unless directory `path` is empty or holds a trace."""
    try:
        names = os.listdir(path)
        text = _read_small(path / "trace.json") if "trace.json" in names else b"null"
        meta = _parse_json(text)
    except (OSError, ValueError, LockstepError) as error:
        raise LockstepError(f"{path}: refusing to replace what cannot be read as a trace: {error}") from None
    is_trace = isinstance(meta, dict) and meta.get("format") == FORMAT
    if not is_trace and any(name == "trace.json" or not is_trace_file(name) for name in names):
        raise LockstepError(f"{path}: expected an empty directory or a trace, found other files; choose another place")


# --- Reading --------------------------------------------------------------------------------------------------------


def _parse_json(text: bytes) -> Any:
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


def _open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Opens a regular file; a FIFO or device must not make the reader wait. Raises OSError or LockstepError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise LockstepError(f"{path}: expected a regular file")
    return fd, status


def _read_small(path: Path) -> bytes:
    fd, status = _open_regular(path)
    with os.fdopen(fd, "rb") as file:
        if status.st_size > _MAX_TRACE_JSON:
            raise LockstepError(f"{path}: expected at most {_MAX_TRACE_JSON} bytes, found {status.st_size}")
        return file.read(_MAX_TRACE_JSON)


@dataclass(frozen=True)
class _MappedFile:
    """A validated step file: mapped when a tensor is asked for, and only while it is still the same file."""

    path: Path
    identity: tuple[int, int]
    data_start: int

    def map(self, begin: int, dtype: str, shape: tuple[int, ...], mode: str) -> np.ndarray:
        """The elements at data offset `begin` as a view of the file, in the numpy dtype `dtype`."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self.identity:
                    raise LockstepError(f"{self.path}: the trace was replaced since it was loaded; load it again")
                mapped = np.memmap(file, dtype=dtype, mode=mode, offset=self.data_start + begin, shape=shape)
        except (OSError, ValueError) as error:
            raise LockstepError(f"{self.path}: cannot map: {error}; was it cut since it was loaded?") from error
        return mapped.view(np.ndarray)


class Tensor:
    """One recorded tensor: `name`, `dtype` (safetensors name), `shape`, `token_axis`, and data on demand."""

    def __init__(self, file: _MappedFile, name: str, dtype: str, shape: tuple[int, ...], begin: int) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.token_axis = 0
        self.keys: Tensor | None = None
        self._file = file
        self._begin = begin
        self._rows: Tensor | None = None

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {list(self.shape)})"

    @property
    def rows(self) -> np.ndarray:
        """i32 [R]: the step's token that each row along the token axis belongs to."""
        return np.arange(self.shape[self.token_axis], dtype=np.int32) if self._rows is None else self._rows.numpy()

    def numpy(self) -> np.ndarray:
        """The values: a read-only view of the file where it is aligned, else a copy.

        bf16 comes as ml_dtypes.bfloat16 where that package is installed, else widened to float32 (exact).
        Raises LockstepError if the file is gone or a float8 cannot be shown.
        """
        bits, special = _DTYPES[self.dtype][1], _DTYPES[self.dtype][3]
        array = self._file.map(self._begin, bits, self.shape, "r")
        array = array if array.flags.aligned else array.copy()
        if special is None:
            return array
        try:
            import ml_dtypes
        except ImportError:
            if self.dtype != "BF16":
                raise LockstepError(f"{self.name}: {self.dtype} needs ml_dtypes; pip install ml_dtypes") from None
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.view(getattr(ml_dtypes, special))

    def torch(self) -> "torch.Tensor":
        """The values as a tensor in native dtype; it may be written to, the file is not changed."""
        import torch

        array = self._file.map(self._begin, _DTYPES[self.dtype][1], self.shape, "c")
        array = array if array.flags.aligned else array.copy()
        signed = {"<u2": "<i2", "<u4": "<i4", "<u8": "<i8"}  # torch.from_numpy knows these everywhere
        bits = signed.get(_DTYPES[self.dtype][1], _DTYPES[self.dtype][1])
        return torch.from_numpy(array.view(bits)).view(getattr(torch, _DTYPES[self.dtype][2]))


@dataclass(frozen=True)
class RankStep:
    """What one rank wrote of a step: positions, sequences, input_ids i32 [T], and its tensors by name."""

    positions: np.ndarray
    sequences: np.ndarray
    input_ids: np.ndarray | None
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One forward call. `ranks` has what each rank wrote; the properties show the lowest rank that has the thing."""

    index: int
    phase: str
    ranks: dict[int, RankStep]

    @property
    def positions(self) -> np.ndarray:
        """i32 [T]."""
        return self.ranks[min(self.ranks)].positions

    @property
    def sequences(self) -> np.ndarray:
        """i32 [T], -1 is padding."""
        return self.ranks[min(self.ranks)].sequences

    @property
    def input_ids(self) -> np.ndarray | None:
        """i32 [T] or None."""
        return self.ranks[min(self.ranks)].input_ids

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor but the token arrays, rows: and keys:."""
        merged: dict[str, Tensor] = {}
        for rank in sorted(self.ranks):
            for name, tensor in self.ranks[rank].tensors.items():
                merged.setdefault(name, tensor)
        return merged


class Trace:
    """A validated trace: `path`, `meta` (trace.json as it is), `steps`."""

    def __init__(self, path: Path, meta: dict, steps: list[Step]) -> None:
        self.path = path
        self.meta = meta
        self.steps = steps

    def names(self) -> list[str]:
        """All tensor names, in the order of their first appearance."""
        return list(dict.fromkeys(name for step in self.steps for name in step.tensors))

    def tokens(self) -> dict[tuple[int, int], int]:
        """(sequence, position) -> token, sorted; -1 where no input_ids were recorded; the latest step wins."""
        table: dict[tuple[int, int], int] = {}
        for step in self.steps:
            ids = np.full(step.positions.shape, -1) if step.input_ids is None else step.input_ids
            table.update(
                ((s, p), t)
                for s, p, t in zip(step.sequences.tolist(), step.positions.tolist(), ids.tolist(), strict=True)
                if s >= 0
            )
        return dict(sorted(table.items()))

    def sequences(self) -> list[list[int]]:
        """The tokens of each sequence, in the order of sequence numbers and positions."""
        lists: dict[int, list[int]] = {}
        for (sequence, _), token in self.tokens().items():
            lists.setdefault(sequence, []).append(token)
        return list(lists.values())

    def rows(self, name: str) -> dict[tuple[int, int], np.ndarray]:
        """(sequence, position) -> the row of `name`, joined over all steps, sorted; the latest step wins.

        Rows have the tensor's shape without the token axis. Raises LockstepError for an unknown name and for a tensor
        that no single rank holds whole.
        """
        entry = _entry_for(name, self.meta.get("tensors", {})) or {}
        if entry.get("partial") or entry.get("shard", {}).get("count", 1) != 1:
            raise LockstepError(f"{name}: spread over several ranks; read steps[i].ranks[r].tensors[{name!r}]")
        table: dict[tuple[int, int], np.ndarray] = {}
        for step in self.steps:
            owner = next((step.ranks[r] for r in sorted(step.ranks) if name in step.ranks[r].tensors), None)
            if owner is not None:
                table.update(_keyed_rows(owner, owner.tensors[name]))
        if not table and not any(name in step.tensors for step in self.steps):
            raise LockstepError(f"{self.path}: no tensor {name!r}; it has {', '.join(self.names()[:8])}, …")
        return dict(sorted(table.items()))


def _keyed_rows(rank: RankStep, tensor: Tensor) -> Iterable[tuple[tuple[int, int], np.ndarray]]:
    values = np.moveaxis(tensor.numpy(), tensor.token_axis, 0)
    for row, token in enumerate(tensor.rows.tolist()):
        if rank.sequences[token] >= 0:
            yield (int(rank.sequences[token]), int(rank.positions[token])), values[row]


def load(path: str | os.PathLike) -> Trace:
    """Reads a trace directory. Everything is validated now; tensors are mapped when they are asked for.

    Warns of a trace that was not closed. Raises LockstepError for a trace that is being written, for a newer version
    and for anything malformed.
    """
    path = Path(path)
    try:
        _refuse_while_written(path)
        meta = _check_meta(_parse_json(_read_small(path / "trace.json")), str(path / "trace.json"))
        if not meta.get("closed", False):
            warnings.warn(f"{path}: not closed: its writer was stopped; tensors may be missing", stacklevel=2)
        steps = []
        for index, entry in enumerate(meta.get("steps", [])):
            may_be_torn = not meta.get("closed", False) and index == len(meta["steps"]) - 1
            ranks = _load_ranks(path, entry, meta, may_be_torn)
            if ranks:
                steps.append(Step(index, entry["phase"], ranks))
        return Trace(path, meta, steps)
    except FileNotFoundError as error:
        raise LockstepError(f"{error.filename}: not found; expected a trace directory with a trace.json") from error
    except OSError as error:
        raise LockstepError(f"{error.filename or path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise LockstepError(f"{path / 'trace.json'}: not valid JSON: {error}") from error


def _refuse_while_written(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(path, fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _expect(condition: bool, where: str, expected: str, found: Any) -> None:
    if not condition:
        text = ascii(found)
        raise LockstepError(f"{where}: expected {expected}, found {text if len(text) < 80 else text[:77] + '...'}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_meta(meta: Any, where: str) -> dict:
    """trace.json has the types that the rest of the reader relies on."""
    _expect(isinstance(meta, dict) and meta.get("format") == FORMAT, where, f'"format": "{FORMAT}"', meta)
    version = meta.get("version")
    _expect(_is_count(version) and version >= 1, where, "a version number", version)
    if version > VERSION:
        raise LockstepError(f"{where}: trace format version {version} is newer than {VERSION}; upgrade lockstep")
    for key in ("producer", "model", "arithmetic", "selection", "weights", "tensors"):
        _expect(isinstance(meta.get(key, {}), dict), f"{where}: {key}", "an object", meta.get(key))
    for key in ("points", "not_observable", "errors"):
        _expect(_is_texts(meta.get(key, [])), f"{where}: {key}", "a list of strings", meta.get(key))
    _expect(isinstance(meta.get("closed", False), bool), f"{where}: closed", "true or false", meta.get("closed"))
    _expect(_is_count(meta.get("rank", 0)), f"{where}: rank", "an integer >= 0", meta.get("rank"))
    _check_selection(meta.get("selection", {}), where)
    for name, entry in meta.get("tensors", {}).items():
        _check_tensor_entry(f"{where}: tensors: {name!a}", entry)
    _check_steps(meta.get("steps", []), where)
    return meta


def _check_selection(selection: dict, where: str) -> None:
    strings = {key: selection.get(key, "") for key in ("points", "layers", "steps", "rows")}
    for key, value in strings.items():
        _expect(isinstance(value, str), f"{where}: selection: {key}", "a string", value)
    Selection(**strings)


def _check_tensor_entry(where: str, entry: Any) -> None:
    _expect(isinstance(entry, dict), where, "an object", entry)
    axes = entry.get("axes", ["token"])
    _expect(_is_texts(axes) and len(set(axes)) == len(axes) > 0, where, "axes with different names", axes)
    _expect(isinstance(entry.get("partial", False), bool), where, "partial true or false", entry.get("partial"))
    shard = entry.get("shard", {"axis": "", "count": 1})
    _expect(isinstance(shard, dict) and isinstance(shard.get("axis"), str), where, "shard {axis, index, count}", shard)
    count, index = shard.get("count"), shard.get("index", 0)
    _expect(_is_count(count) and _is_count(index) and index < count, where, "shard with index < count", shard)


def _check_steps(steps: Any, where: str) -> None:
    _expect(isinstance(steps, list), f"{where}: steps", "a list", steps)
    seen: set[str] = set()
    for index, step in enumerate(steps):
        here = f"{where}: step {index}"
        _expect(isinstance(step, dict), here, "an object", step)
        _expect(step.get("phase") in ("prefill", "decode"), here, 'phase "prefill" or "decode"', step.get("phase"))
        files = step.get("files")
        _expect(isinstance(files, list) and len(files) > 0, here, "a list of files", files)
        for entry in files:
            _expect(isinstance(entry, dict), here, "{file, rank}", entry)
            _expect(_is_count(entry.get("rank", 0)), here, "a rank >= 0", entry.get("rank"))
            name = entry.get("file")
            _check_file_name(name, here)
            _expect(name not in seen, here, "each file once", name)
            seen.add(name)


def _check_file_name(name: Any, where: str) -> None:
    """A name in this directory: a trace must not make its reader open files elsewhere."""
    _expect(isinstance(name, str), where, "a file name", name)
    _check_name(name)
    _expect("/" not in name and name.endswith(".safetensors"), where, "a .safetensors file of this directory", name)


def _load_ranks(path: Path, entry: dict, meta: dict, may_be_torn: bool) -> dict[int, RankStep]:
    """The step's files, joined by rank. A step whose writer was stopped before it was set up may be absent."""
    by_rank: dict[int, dict[str, Tensor]] = {}
    for item in entry["files"]:
        file = path / item["file"]
        tensors = by_rank.setdefault(item.get("rank", meta.get("rank", 0)), {})
        try:
            found = _read_step_file(file)
        except FileNotFoundError:
            if not may_be_torn:
                raise
            continue
        twice = tensors.keys() & found.keys()
        _expect(not twice, str(file), "each tensor once in a step", sorted(twice))
        tensors.update(found)
    complete = {r: t for r, t in by_rank.items() if not may_be_torn or ("positions" in t and "sequences" in t)}
    declared = meta.get("tensors", {})
    return {rank: _join_rank(str(path / entry["files"][0]["file"]), t, declared) for rank, t in complete.items()}


def _join_rank(where: str, tensors: dict[str, Tensor], declared: dict) -> RankStep:
    """Takes the format's own tensors out of `tensors` and checks the others against them."""
    for name in ("positions", "sequences"):
        _expect(name in tensors, where, f"a tensor {name}", sorted(tensors))
    tokens = {name: _token_array(where, tensors.pop(name)) for name in _STEP_TENSORS if name in tensors}
    positions, sequences, input_ids = (tokens.get(name) for name in _STEP_TENSORS)
    _check_tokens(where, positions, sequences, input_ids)
    extras = {name: tensors.pop(name) for name in list(tensors) if name.startswith(("rows:", "keys:"))}
    for tensor in tensors.values():
        try:
            _attach(tensor, extras, positions.size, declared)
        except LockstepError as error:
            raise LockstepError(f"{where}: {error}") from None
    return RankStep(positions, sequences, input_ids, tensors)


def _token_array(where: str, tensor: Tensor) -> np.ndarray:
    """i32 [T], read now."""
    _expect(tensor.dtype == "I32" and len(tensor.shape) == 1, where, f"{tensor.name} as I32 [T]", tensor)
    return tensor.numpy().copy()


def _attach(tensor: Tensor, extras: dict[str, Tensor], num_tokens: int, declared: dict) -> None:
    """Gives a tensor its rows: and keys:, and checks that its shape fits them."""
    tensor.token_axis = _axis(tensor.name, "token", 0, tensor.shape, declared)
    rows, keys = extras.get(f"rows:{tensor.name}"), extras.get(f"keys:{tensor.name}")
    count = num_tokens
    if rows is not None:
        array = _token_array(tensor.name, rows)
        _check_rows(tensor.name, array, num_tokens)
        count, tensor._rows = array.size, rows
    found = tensor.shape[tensor.token_axis]
    _expect(found == count, tensor.name, f"{count} rows along axis {tensor.token_axis}", list(tensor.shape))
    if keys is not None:
        _expect(keys.dtype == "I32", keys.name, "I32", keys.dtype)
        _check_keys(tensor.name, keys.shape, count, tensor.shape[_axis(tensor.name, "key", -1, tensor.shape, declared)])
        tensor.keys = keys


def _read_step_file(path: Path) -> dict[str, Tensor]:
    """The tensors that the header of one step file names, all inside the file. A tail without a name is ignored."""
    fd, status = _open_regular(path)
    with os.fdopen(fd, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        room = min(status.st_size - 8, _MAX_STEP_HEADER)
        _expect(2 <= length <= room, str(path), f"a header of 2 to {room} bytes", length)
        text = file.read(length)
    _expect(text[:1] == b"{", str(path), "a header that begins with {", text[:8])
    try:
        header = _parse_json(text)
    except ValueError as error:
        raise LockstepError(f"{path}: the header is not valid JSON: {error}") from None
    header.pop("__metadata__", None)
    mapped = _MappedFile(path, (status.st_dev, status.st_ino), 8 + length)
    spans = [_check_entry(f"{path}: {name!a}", name, entry) for name, entry in header.items()]
    _check_layout(str(path), spans, status.st_size - 8 - length)
    return {
        name: Tensor(mapped, name, entry["dtype"], tuple(entry["shape"]), begin)
        for (name, entry), (begin, _) in zip(header.items(), spans, strict=True)
    }


def _check_entry(where: str, name: str, entry: Any) -> tuple[int, int]:
    """One header entry is consistent in itself; returns its data offsets."""
    _check_name(name)
    _expect(isinstance(entry, dict), where, "{dtype, shape, data_offsets}", entry)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    _expect(isinstance(dtype, str) and dtype in _DTYPES, where, f"a dtype of {', '.join(_DTYPES)}", dtype)
    _expect(isinstance(shape, list) and len(shape) <= _MAX_AXES and all(map(_is_count, shape)), where, "a shape", shape)
    _expect(isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_count, offsets)), where, "offsets", offsets)
    size = _DTYPES[dtype][0]
    # numpy cannot even hold an empty array whose other axes overflow.
    _expect(_product(n for n in shape if n) * size < 1 << 63, where, "a shape that fits 63 bits", shape)
    expected = _product(shape) * size
    _expect(offsets[1] - offsets[0] == expected, where, f"{expected} bytes as of {dtype} {shape}", offsets)
    return offsets[0], offsets[1]


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _check_layout(where: str, spans: list[tuple[int, int]], size: int) -> None:
    """Tensors follow each other from 0 without overlap or hole, inside the `size` bytes of data."""
    at = 0
    for begin, end in sorted(spans):
        _expect(begin == at, where, f"the next tensor's data at offset {at}, without overlap or hole", [begin, end])
        at = end
    _expect(at <= size, where, f"data within the file's {size} bytes; is it truncated?", at)
