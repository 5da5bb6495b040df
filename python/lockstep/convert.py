"""Text, .npy and .npz dumps from and to traces: `python -m lockstep.convert import|export`.

One file a point: `layer_3_attn_q_rope.txt`, perhaps behind a prefix (`py_`, `cpp_`). A text file has a shape line, if
any, then the values, separated by blanks, commas or line ends. Export writes all rows of a point in (sequence,
position) order; several sequences go to `NAME.seqN`, tokens to `input_ids` and `positions`, and `NAME.positions` says
which positions a point has where it lacks some. Import reads all of that and needs none of it: positions default to
0, 1, 2, … and the sequence to 0; a file without a shape line takes its shape from the point's axes and from the other
files (or input_ids), and where those do not tell, it is one row.

bf16 and float8 leave as float32 in .npy and .npz, which know neither; text keeps their names.
"""

import argparse
import math
import os
import re
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import LockstepError
from lockstep.points import parse_name, points
from lockstep.trace import Selection, Trace, TraceWriter, check_replaceable, claim, is_trace_file, load, matches

PREFIXES = ("py_", "cpp_")
# Where a model may compute fewer rows than tokens; it then is the last ones.
_LAST_ROWS = ("logits", "final_norm_output")
_HEADER_LINES = 16
_KEY = re.compile(r"(?P<name>.+?)(?P<positions>\.positions)?(?:\.seq(?P<sequence>\d{1,9}))?", re.DOTALL)
_LIST = r"(\d+(?:\s*[,x×\s]\s*\d+)*)"
# Spellings of a shape in a header line, the surest first:
# "shape: 1 3 2048", "torch.Size([1, 3])", "(1, 3)", "# 1 3" or "1x3".
_SHAPES = [
    re.compile(rf"(?<![a-z])shape(?![a-z])\D*?{_LIST}", re.I),
    re.compile(rf"(?<![a-z])(?:size|dims?)(?![a-z])\D*?{_LIST}", re.I),
    re.compile(rf"[(\[]\s*{_LIST}\s*,?\s*[)\]]"),
    re.compile(rf"^\s*#?\s*{_LIST}\s*$"),
]
_BARE_SHAPE = re.compile(rf"\s*{_LIST}\s*,?\s*")
_BRACKETED_SHAPE = re.compile(rf"\s*[(\[]\s*{_LIST}\s*,?\s*[)\]]\s*")
_DTYPE_MARK = re.compile(r"\bdtype:\s*([A-Z][A-Z0-9_]+)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|inf(?:inity)?|nan)", re.I)
_TO_BLANKS = str.maketrans(",;[]()", "      ")


# --- Text files -----------------------------------------------------------------------------------------------------


@dataclass
class Dump:
    """One file's tensor. `shaped` is false where the file told no shape and `values` [N] is flat."""

    source: str
    values: np.ndarray
    shaped: bool = True


def parse_text(source: str, text: str, integers: bool = False) -> Dump:
    """A text dump, as float32 unless it names its dtype. Raises LockstepError, with `source` in it, for bad text.

    `integers`: a list of tokens or positions, where a first line of integers is no shape.
    """
    header, body = _split_header(text, integers)
    dtype = next((match[1] for line in header if (match := _DTYPE_MARK.search(line))), "F64" if integers else "F32")
    tokens = " ".join(line for line in body if not line.lstrip().startswith("#")).translate(_TO_BLANKS).split()
    shape = _header_shape(header)
    if shape is None and not integers:
        shape, used = _bare_shape(body, tokens)
        tokens = tokens[used:]
    if shape is not None and math.prod(shape) != len(tokens):
        expected = f"expected {math.prod(shape)} values as of shape {shape}"
        raise LockstepError(f"{source}: {expected}, found {len(tokens)}; is the file truncated?")
    if not tokens and shape is None:
        raise LockstepError(f"{source}: expected values, found none")
    values = _parse_values(source, tokens, dtype)
    return Dump(source, values if shape is None else values.reshape(shape), shape is not None)


def _split_header(text: str, integers: bool) -> tuple[list[str], list[str]]:
    """The leading lines that are not plain values, and the others."""
    lines = [line for line in text.splitlines() if line.strip()]
    count = 0
    while count < min(len(lines), _HEADER_LINES) and not _is_values(lines[count], integers):
        count += 1
    return lines[:count], lines[count:]


def _is_values(line: str, integers: bool) -> bool:
    """Whether these are values: "1.5, 2" and "[1.5, 2]" do; "shape: 1 3", "# 1 3" and, of floats, "[1, 3]" do not."""
    if not integers and _BRACKETED_SHAPE.fullmatch(line):
        return False
    first = line.translate(_TO_BLANKS).split()
    return bool(first) and _NUMBER.fullmatch(first[0]) is not None


def _header_shape(header: list[str]) -> list[int] | None:
    for spelling in _SHAPES:
        for line in header:
            if match := spelling.search(line):
                return _numbers(match[1])
    return None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _bare_shape(body: list[str], tokens: list[str]) -> tuple[list[int] | None, int]:
    """A first line of bare integers is a shape if the count fits, or if it has several and no value is an integer.

    Returns the shape or None, and how many of `tokens` it used.
    """
    match = _BARE_SHAPE.fullmatch(body[0]) if len(body) > 1 else None
    if not match:
        return None, 0
    shape = _numbers(match[1])
    used = len(body[0].translate(_TO_BLANKS).split())
    rest = tokens[used:]
    fits = math.prod(shape) == len(rest)
    fractions = len(shape) > 1 and not any(token.isdigit() for token in rest)
    return (shape, used) if fits or fractions else (None, 0)


def _parse_values(source: str, tokens: list[str], dtype: str) -> np.ndarray:
    """`tokens` as a flat array of the named dtype."""
    target = _numpy_dtype(source, dtype)
    try:
        if np.issubdtype(target, np.integer) or target == np.bool_:
            return np.array([int(token) for token in tokens], dtype=target)
        wide = np.array([float(token) for token in tokens], dtype=np.float64)
    except (ValueError, OverflowError):
        bad = next((token for token in tokens if not _NUMBER.fullmatch(token)), "a value outside the dtype's range")
        raise LockstepError(f"{source}: expected {dtype} numbers, found {bad[:40]!a}") from None
    with np.errstate(over="ignore"):
        narrow = wide.astype(target)
    lost = np.isfinite(wide) & ~np.isfinite(narrow.astype(np.float64))
    if lost.any():
        raise LockstepError(f"{source}: expected {dtype} numbers, found {wide[lost][0]}, which is beyond its range")
    return narrow


def _numpy_dtype(source: str, dtype: str) -> np.dtype:
    integers = {f"{kind}{8 * size}": f"{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
    plain = {"F16": "f2", "F32": "f4", "F64": "f8", "BOOL": "?", **integers}
    special = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    if dtype in plain:
        return np.dtype(plain[dtype])
    if dtype not in special:
        raise LockstepError(f"{source}: unknown dtype {dtype}; expected one of {', '.join([*plain, *special])}")
    try:
        import ml_dtypes
    except ImportError:
        raise LockstepError(f"{source}: {dtype} needs the package ml_dtypes; pip install ml_dtypes") from None
    return np.dtype(getattr(ml_dtypes, special[dtype]))


def format_text(values: np.ndarray, dtype: str) -> str:
    """`values` [rows, …] as text that parse_text reads back to the bit; a row a line.

    Floats are written as the shortest text of their float64, so that reading them twice rounded loses nothing.
    """
    plain = values if values.dtype.kind in "iub" else values.astype(np.float64)
    shape = " ".join(str(n) for n in values.shape)
    show = int if values.dtype.kind == "b" else (lambda value: value)
    rows = plain.reshape(len(plain), -1) if plain.size else np.zeros((0, 0))
    lines = (" ".join(repr(show(value)) for value in row) for row in rows.tolist())
    return f"# shape: {shape}, dtype: {dtype}\n" + "".join(f"{line}\n" for line in lines)


# --- Reading a dump -------------------------------------------------------------------------------------------------


def _read_dumps(source: Path, prefix: str | None) -> dict[str, Dump]:
    """Key (NAME, NAME.seq1, NAME.positions, …) -> Dump, of a directory or one .npz file."""
    if source.is_dir():
        npz = sorted(source.glob("*.npz"))
        files = sorted(p for p in source.iterdir() if p.suffix in (".txt", ".npy"))
        if not files and len(npz) == 1:
            return _read_dumps(npz[0], prefix)
        named = _strip_prefix(source, prefix, [(file.stem, file) for file in files])
        return {name: _read_file(file, name) for name, file in named}
    if source.suffix != ".npz" or not source.exists():
        raise LockstepError(f"{source}: expected a directory of .txt or .npy files, or one .npz file")
    with _numpy_errors(source), np.load(source, allow_pickle=False) as archive:
        chosen = _strip_prefix(source, prefix, [(key, key) for key in archive.files])
        return {name: Dump(f"{source}: {key}", _native(f"{source}: {key}", archive[key])) for name, key in chosen}


def _strip_prefix(source: Path, prefix: str | None, named: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The items whose name has the prefix, without it; raises LockstepError if there are none or two of a name."""
    present = [p for p in PREFIXES if any(name.startswith(p) for name, _ in named)]
    if prefix is None and len(present) > 1:
        raise LockstepError(f"{source}: found files of both {' and '.join(present)}; choose with --prefix")
    prefix = (present or [""])[0] if prefix is None else prefix
    chosen = [(name[len(prefix) :], item) for name, item in named if name.startswith(prefix) and name != prefix]
    if not chosen:
        behind = f" that begin with {prefix}" if prefix else ""
        raise LockstepError(f"{source}: expected .txt, .npy or .npz tensors{behind}, found none")
    for name, count in Counter(name for name, _ in chosen).items():
        if count > 1:
            raise LockstepError(f"{source}: {prefix}{name} is there as .txt and as .npy; remove one")
    return chosen


def _read_file(path: Path, key: str) -> Dump:
    match = _KEY.fullmatch(key)
    integers = bool(match and (match["positions"] or match["name"] in ("input_ids", "positions")))
    if path.suffix == ".txt":
        try:
            return parse_text(str(path), path.read_text(encoding="utf-8"), integers)
        except UnicodeDecodeError:
            raise LockstepError(f"{path}: expected text, found bytes that are not UTF-8") from None
    with _numpy_errors(path):
        return Dump(str(path), _native(str(path), np.load(path, mmap_mode="r", allow_pickle=False)))


@contextmanager
def _numpy_errors(source: Path) -> Iterator[None]:
    """numpy and zipfile have a dozen ways to say that a file is broken."""
    broken = (ValueError, OSError, EOFError, KeyError, MemoryError, OverflowError, SyntaxError, TypeError)
    try:
        yield
    except (*broken, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise LockstepError(f"{source}: not a readable numpy file: {error}") from error


def _native(source: str, array: Any) -> np.ndarray:
    """`array` with a dtype that a trace can hold; ml_dtypes' bfloat16 arrives from numpy as two raw bytes."""
    if not isinstance(array, np.ndarray):
        raise LockstepError(f"{source}: expected an array, found {type(array).__name__}")
    if array.dtype == np.dtype("V2"):
        return array.view(_numpy_dtype(source, "BF16"))
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise LockstepError(f"{source}: expected numbers, found dtype {array.dtype}")
    return array


# --- From dumps to rows ---------------------------------------------------------------------------------------------


@dataclass
class _Sequence:
    """One sequence of an import: its positions [T], tokens [T] or None, and the dumps of its points."""

    positions: np.ndarray
    input_ids: np.ndarray | None
    points: dict[str, Dump]
    point_positions: dict[str, np.ndarray] = field(default_factory=dict)


def _group(dumps: dict[str, Dump]) -> dict[int, _Sequence]:
    """The dumps by sequence."""
    groups: dict[int, dict[str, dict[str, Dump]]] = {}
    for key, dump in dumps.items():
        match = _KEY.fullmatch(key)
        assert match
        group = groups.setdefault(int(match["sequence"] or 0), {"points": {}, "positions": {}})
        into = group["positions" if match["positions"] else "points"]
        if match["name"] in into:
            raise LockstepError(f"{dump.source}: sequence 0 of {match['name']} is there twice; remove one")
        into[match["name"]] = dump
    return {number: _sequence(**groups[number]) for number in sorted(groups)}


def _sequence(points: dict[str, Dump], positions: dict[str, Dump]) -> _Sequence:
    ids = _integers(points.pop("input_ids", None))
    places = _integers(points.pop("positions", None))
    if places is None:
        places = np.arange(len(ids) if ids is not None else _count_tokens(points), dtype=np.int64)
    if ids is not None and len(ids) != len(places):
        raise LockstepError(f"input_ids: expected {len(places)} tokens as there are positions, found {len(ids)}")
    own = {name: _integers(dump) for name, dump in positions.items()}
    for name in own:
        if name not in points:
            raise LockstepError(f"{positions[name].source}: there is no {name} for these positions")
    return _Sequence(places, ids, points, {name: array for name, array in own.items() if array is not None})


def _integers(dump: Dump | None) -> np.ndarray | None:
    """A flat list of integers, such as input_ids [T] or [1, T]."""
    if dump is None:
        return None
    flat = np.asarray(dump.values).reshape(-1)
    with np.errstate(invalid="ignore"):
        whole = flat.astype(np.int64)
    if (whole != flat).any():
        raise LockstepError(f"{dump.source}: expected integers, found {flat[whole != flat][0]}")
    return whole


def _axes_of(name: str) -> tuple[str, ...] | None:
    point = points().get(parse_name(name)[0])
    return point.axes if point else None


def _count_tokens(dumps: dict[str, Dump]) -> int:
    """T, where nothing says it: the rows of a point [token, x], else the most rows of any; 1 if no shape is known."""
    counts: dict[bool, list[int]] = {True: [], False: []}
    for name, dump in dumps.items():
        axes, shape = _axes_of(name), dump.values.shape
        if not dump.shaped or not shape:
            continue
        batch = shape[0] == 1 and len(shape) == (len(axes) + 1 if axes else 3)
        is_plain = axes is not None and len(axes) == 2 and parse_name(name)[0] not in _LAST_ROWS
        counts[is_plain].append(shape[1] if batch else shape[0])
    return max(counts[True] or counts[False] or [1])


def _known_sizes(dumps: dict[str, Dump]) -> dict[str, int]:
    """Sizes of axes (hidden, head_dim, …) as far as the files with a full shape tell and agree."""
    found: dict[str, set[int]] = {}
    for name, dump in dumps.items():
        axes, shape = _axes_of(name), dump.values.shape
        if axes is None or not dump.shaped or parse_name(name)[0].endswith("_proj_raw"):
            continue  # a projection may be stored before its view: [1, T, q_head * head_dim] looks like three axes
        shape = shape[1:] if len(shape) == len(axes) + 1 else shape
        if len(shape) == len(axes):
            # Heads may stand before the tokens, so only the last axis is certain.
            found.setdefault(axes[-1], set()).add(shape[-1])
    return {axis: sizes.pop() for axis, sizes in found.items() if len(sizes) == 1}


def _token_major(name: str, dump: Dump, tokens: int, sizes: dict[str, int]) -> np.ndarray:
    """The values rows first: without a batch of 1, heads behind the tokens, [T, H * d] split where d is known."""
    axes, array = _axes_of(name), dump.values
    if not dump.shaped:
        array = _guess_rows(array, axes, tokens, sizes)
    if array.ndim == 0:
        raise LockstepError(f"{dump.source}: expected rows of tokens, found a single value")
    array = _drop_batch(dump.source, array, axes, tokens)
    if axes is None:
        return array
    if len(axes) == 3 and array.ndim == 3 and array.shape[0] != tokens and array.shape[1] == tokens:
        array = np.moveaxis(array, 1, 0)
    size = sizes.get(axes[-1], 0)
    if len(axes) == 3 and array.ndim == 2 and size and array.shape[1] % size == 0:
        array = array.reshape(len(array), -1, size)
    return array


def _guess_rows(flat: np.ndarray, axes: tuple[str, ...] | None, tokens: int, sizes: dict[str, int]) -> np.ndarray:
    """[rows, …] of values without a shape: as wide as the point's axis is elsewhere, else T rows, else one."""
    width = sizes.get(axes[-1], 0) if axes and len(axes) == 2 else 0
    if width and flat.size % width == 0:
        return flat.reshape(-1, width)
    return flat.reshape((tokens, -1) if tokens and flat.size % tokens == 0 else (1, -1))


def _drop_batch(source: str, array: np.ndarray, axes: tuple[str, ...] | None, tokens: int) -> np.ndarray:
    has_batch = axes is not None and array.ndim == len(axes) + 1
    # [1, T, H * d] of a point with three axes, or of a name that the table does not have
    looks_batched = array.ndim >= 3 and array.shape[:2] == (1, tokens) and (axes is None or tokens != 1)
    if has_batch and array.shape[0] != 1:
        raise LockstepError(f"{source}: expected a batch of 1, found {list(array.shape)}; dump one sequence a run")
    return array[0] if has_batch or looks_batched else array


def _row_tokens(name: str, source: str, count: int, sequence: _Sequence) -> np.ndarray:
    """Indices [count] into the sequence's tokens of a point's rows."""
    total = len(sequence.positions)
    own = sequence.point_positions.get(name)
    if own is not None:
        at = {position: index for index, position in enumerate(sequence.positions.tolist())}
        missing = next((p for p in own.tolist() if p not in at), None)
        if len(own) != count or missing is not None:
            wrong = f"{len(own)} positions" if missing is None else f"position {missing}, which no token has"
            raise LockstepError(f"{source}: expected a position for each of {count} rows, found {wrong}")
        return np.array([at[position] for position in own.tolist()], dtype=np.int64)
    if count == total or (count < total and parse_name(name)[0] in _LAST_ROWS):
        return np.arange(total - count, total)
    expected = f"expected {total} rows as there are tokens"
    raise LockstepError(f"{source}: {expected}, found {count}; is it truncated, or of another run?")


def _join(sequences: dict[int, _Sequence]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, values [R, …], rows [R]) of each point over all sequences."""
    starts, total = {}, 0
    for number, sequence in sequences.items():
        starts[number], total = total, total + len(sequence.positions)
    sizes = {number: _known_sizes(sequence.points) for number, sequence in sequences.items()}
    for name in dict.fromkeys(name for sequence in sequences.values() for name in sequence.points):
        parts, rows, source = [], [], name
        for number, sequence in sequences.items():
            if name in sequence.points:
                dump = sequence.points[name]
                source = dump.source
                parts.append(_token_major(name, dump, len(sequence.positions), sizes[number]))
                rows.append(starts[number] + _row_tokens(name, source, len(parts[-1]), sequence))
        if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
            shapes = ", ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
            raise LockstepError(f"{source}: expected one shape and dtype over all sequences, found {shapes}")
        yield name, parts[0] if len(parts) == 1 else np.concatenate(parts), np.concatenate(rows)


def import_dump(
    source: str | os.PathLike, out: str | os.PathLike, prefix: str | None = None, storage: str | None = None
) -> None:
    """Makes trace `out` of a directory of .txt and .npy files or of one .npz file.

    `prefix`: of the file names, found if only one of py_ and cpp_ occurs. `storage`: the arithmetic's dtype, where it
    is not the files' own (text printed by a bf16 engine). Raises LockstepError; `out` then is as it was before.
    """
    source, out = Path(source), Path(out)
    sequences = _group(_read_dumps(source, prefix))
    tensors = list(_join(sequences))
    if not tensors:
        raise LockstepError(f"{source}: expected tensors beside input_ids and positions, found none")
    with _replacing_trace(out) as temporary:
        _write_trace(temporary, sequences, tensors, storage or _storage_of(tensors))


def _storage_of(tensors: list[tuple[str, np.ndarray, np.ndarray]]) -> str:
    """The floating dtype that most tensors have."""
    names = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    return Counter(names.get(values.dtype.name, "F32") for _, values, _ in tensors).most_common(1)[0][0]


def _write_trace(
    path: Path, sequences: dict[int, _Sequence], tensors: list[tuple[str, np.ndarray, np.ndarray]], storage: str
) -> None:
    ids = None
    if all(sequence.input_ids is not None for sequence in sequences.values()):
        ids = np.concatenate([sequence.input_ids for sequence in sequences.values()])
    places = np.concatenate([sequence.positions for sequence in sequences.values()])
    numbers = np.concatenate([np.full(len(s.positions), number) for number, s in sequences.items()])
    everything = Selection(points="*," + ",".join(p.name for p in points().values() if p.on_request))
    with (
        TraceWriter(path, producer="import", config={}, storage=storage, selection=everything) as trace,
        trace.begin_step(ids, places, numbers) as step,
    ):
        for name, values, rows in tensors:
            step.record(name, values, rows=None if np.array_equal(rows, np.arange(len(places))) else rows)


@contextmanager
def _replacing_trace(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its place at the end; other files in an older trace are kept."""
    if out.exists() and not out.is_dir():
        raise LockstepError(f"{out}: expected a trace directory or nothing, found a file")
    if out.is_dir():
        check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as holder:
        new, old = Path(holder) / "new", Path(holder) / "old"
        yield new
        if out.is_dir():
            os.close(claim(out))  # refuses a trace that is being written
            out.rename(old)
            for name in os.listdir(old):
                if not is_trace_file(name):
                    (old / name).rename(new / name)
        new.rename(out)


# --- Export ---------------------------------------------------------------------------------------------------------


def _export_items(trace: Trace, names: list[str]) -> Iterator[tuple[str, np.ndarray, str]]:
    """(key, values, dtype) of every file that an export of `names` writes, one point at a time."""
    tokens: dict[int, dict[int, int]] = {}
    for (sequence, position), token in trace.tokens().items():
        tokens.setdefault(sequence, {})[position] = token
    suffixes = {sequence: f".seq{sequence}" if len(tokens) > 1 else "" for sequence in tokens}
    for sequence, suffix in suffixes.items():
        positions, ids = list(tokens[sequence]), list(tokens[sequence].values())
        if any(token >= 0 for token in ids):
            yield f"input_ids{suffix}", np.array(ids, np.int32), "I32"
        if positions != list(range(len(positions))):
            yield f"positions{suffix}", np.array(positions, np.int32), "I32"
    for name in names:
        for sequence, (positions, values) in _rows_by_sequence(trace, name).items():
            yield name + suffixes[sequence], values, _dtype_name(trace, name)
            if positions != _default_positions(name, len(positions), list(tokens[sequence])):
                yield f"{name}.positions{suffixes[sequence]}", np.array(positions, np.int32), "I32"


def _default_positions(name: str, count: int, positions: list[int]) -> list[int]:
    """What an import takes `count` rows of `name` for when nothing says it."""
    return positions[len(positions) - count :] if parse_name(name)[0] in _LAST_ROWS else positions


def _dtype_name(trace: Trace, name: str) -> str:
    dtypes = {step.tensors[name].dtype for step in trace.steps if name in step.tensors}
    if len(dtypes) > 1:
        raise LockstepError(f"{trace.path}: {name}: expected one dtype in all steps, found {', '.join(sorted(dtypes))}")
    return dtypes.pop()


def _rows_by_sequence(trace: Trace, name: str) -> dict[int, tuple[list[int], np.ndarray]]:
    """sequence -> (positions [R], values [R, …])."""
    if any(step.tensors[name].keys is not None for step in trace.steps if name in step.tensors):
        raise LockstepError(f"{trace.path}: {name} has keys:{name}, which no dump can hold; leave it out with --points")
    grouped: dict[int, tuple[list[int], list[np.ndarray]]] = {}
    for (sequence, position), row in trace.rows(name).items():
        positions, rows = grouped.setdefault(sequence, ([], []))
        positions.append(position)
        rows.append(row)
    return {sequence: (positions, _stack(name, rows)) for sequence, (positions, rows) in grouped.items()}


def _stack(name: str, rows: list[np.ndarray]) -> np.ndarray:
    """Rows of one shape as [R, …]; attention rows [H, key] of steps with fewer keys are filled up as masked."""
    shapes = {row.shape for row in rows}
    if len(shapes) == 1:
        return np.stack(rows)
    axes = _axes_of(name)
    if not axes or axes[-1] != "key" or len({shape[:-1] for shape in shapes}) > 1:
        raise LockstepError(f"{name}: expected rows of one shape, found {sorted(map(list, shapes))}")
    masked = 0.0 if parse_name(name)[0] == "attn_probs" else -np.inf
    result = np.full((len(rows), *rows[0].shape[:-1], max(shape[-1] for shape in shapes)), masked, rows[0].dtype)
    for index, row in enumerate(rows):
        result[index, ..., : row.shape[-1]] = row
    return result


def export_trace(path: str | os.PathLike, form: str, out: str | os.PathLike, prefix: str = "", chosen: str = "") -> int:
    """Writes directory `out` (or the file, if it is called *.npz) as "txt", "npy" or "npz"; returns how many tensors.

    `chosen`: comma-separated patterns of points, everything if empty. Raises LockstepError; then nothing was written.
    """
    trace, out = load(path), Path(out)
    patterns = [pattern.strip() for pattern in chosen.split(",") if pattern.strip()] or ["*"]
    names = [n for n in trace.names() if any(matches(p, n) or matches(p, parse_name(n)[0]) for p in patterns)]
    if not names:
        raise LockstepError(f"{trace.path}: no tensor matches {chosen!r}; it has {', '.join(trace.names()[:8])}, …")
    is_file = form == "npz" and out.suffix == ".npz"
    folder = out.parent if is_file else out
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        items = _checked_keys(_export_items(trace, names), prefix)
        if form == "npz":
            count = _write_npz(Path(temporary) / (out.name if is_file else "tensors.npz"), items)
        else:
            count = sum(_write_file(Path(temporary) / f"{key}.{form}", values, dtype) for key, values, dtype in items)
        folder.mkdir(exist_ok=True)
        for name in os.listdir(temporary):
            os.replace(Path(temporary) / name, folder / name)
    return count


def _checked_keys(items: Iterator[tuple[str, np.ndarray, str]], prefix: str) -> Iterator[tuple[str, np.ndarray, str]]:
    """The items with the prefix; refuses names that would leave the directory or overwrite each other."""
    seen: set[str] = set()
    for key, values, dtype in items:
        full = prefix + key
        if "/" in full or full in seen:
            why = "holds a slash" if "/" in full else "is there twice"
            raise LockstepError(f"{full}: cannot be a file name: it {why}; leave it out with --points")
        seen.add(full)
        yield full, values, dtype


def _write_file(path: Path, values: np.ndarray, dtype: str) -> int:
    if path.suffix == ".txt":
        path.write_text(format_text(values, dtype), encoding="utf-8")
    else:
        np.save(path, _for_numpy(values, dtype), allow_pickle=False)
    return 1


def _write_npz(path: Path, items: Iterator[tuple[str, np.ndarray, str]]) -> int:
    """As numpy.savez does, but with one tensor in memory at a time."""
    count = 0
    with zipfile.ZipFile(path, "w") as archive:
        for key, values, dtype in items:
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(_for_numpy(values, dtype)), allow_pickle=False)
            count += 1
    return count


def _for_numpy(values: np.ndarray, dtype: str) -> np.ndarray:
    """A dtype that every numpy can load."""
    return values.astype(np.float32) if dtype in ("BF16", "F8_E4M3", "F8_E5M2") else values


# --- Command line ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lockstep.convert", description="Dumps from and to traces.")
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser("import", help="make a trace of .txt, .npy or .npz files")
    importer.add_argument("source", metavar="SRC", help="a directory of .txt and .npy files, or one .npz file")
    importer.add_argument("--out", required=True, metavar="TRACE", help="the trace; an older one is replaced")
    importer.add_argument("--prefix", help="of the file names (default: py_ or cpp_ where only one of them occurs)")
    importer.add_argument("--storage", choices=["F32", "BF16", "F16", "F64"], help="dtype that the engine computed in")
    exporter = commands.add_parser("export", help="write a trace as .txt, .npy or .npz files")
    exporter.add_argument("trace", metavar="TRACE")
    exporter.add_argument("--format", required=True, choices=["txt", "npy", "npz"])
    exporter.add_argument("--out", required=True, metavar="DIR", help="a directory (with npz also a file: NAME.npz)")
    exporter.add_argument("--prefix", default="", help="put before each file name, such as py_")
    exporter.add_argument("--points", default="", help='comma-separated patterns, such as "attn_*,logits"')
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input, with one line on stderr."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"lockstep: warning: {message}", file=sys.stderr)
        try:
            if options.command == "import":
                import_dump(options.source, options.out, options.prefix, options.storage)
            else:
                export_trace(options.trace, options.format, options.out, options.prefix, options.points)
        except (LockstepError, OSError, MemoryError) as error:
            print("lockstep: error: " + " ".join((str(error) or "out of memory").split()), file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
