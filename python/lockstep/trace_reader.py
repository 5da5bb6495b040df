"""The reader of traces. It believes nothing: every offset, shape, dtype and name is checked before a byte is mapped."""

import fcntl
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lockstep.errors import LockstepError
from lockstep.trace_layout import (
    DTYPES,
    STEP_TENSORS,
    axis_index,
    check_keys,
    check_name,
    check_rows,
    check_tokens,
    entry_for,
    expect,
    is_count,
    lock,
    open_regular,
    parse_json,
)
from lockstep.trace_meta import check_meta, read_trace_json

if TYPE_CHECKING:
    import torch

_MAX_STEP_HEADER = 100_000_000  # the limit of the safetensors package
_MAX_AXES = 32


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
        bits, special = DTYPES[self.dtype][1], DTYPES[self.dtype][3]
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
        """The values as a tensor in native dtype: a view of the file, too, but a private one.

        It may be written to: pages that are written are copied, the file is not changed, and torch has no reason to
        warn of memory that is read-only.
        """
        import torch

        array = self._file.map(self._begin, DTYPES[self.dtype][1], self.shape, "c")
        array = array if array.flags.aligned else array.copy()
        signed = {"<u2": "<i2", "<u4": "<i4", "<u8": "<i8"}  # torch.from_numpy knows these everywhere
        bits = signed.get(DTYPES[self.dtype][1], DTYPES[self.dtype][1])
        return torch.from_numpy(array.view(bits)).view(getattr(torch, DTYPES[self.dtype][2]))


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
    """A validated trace: `path`, `meta` (trace.json as it is), `steps`; trace["logits"] is a point over all steps."""

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
        table: dict[tuple[int, int], np.ndarray] = {}
        for owner in self._owners(name):
            table.update(_keyed_rows(owner, owner.tensors[name]))
        return dict(sorted(table.items()))

    @property
    def points(self) -> list[str]:
        """names() without the greedy choices (next_token)."""
        return [name for name in self.names() if name != "next_token"]

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of `name`, rows joined over all steps and sorted by (sequence, position): see index().

        Of a single step whose rows are in that order it is a view of the file, and copies nothing. Raises as rows().
        """
        return self._joined(name)[0]

    def index(self, name: str) -> np.ndarray:
        """i32 [R, 2]: sequence and position of each row of trace[name]."""
        return self._joined(name)[1]

    def __contains__(self, name: object) -> bool:
        return any(name in step.tensors for step in self.steps)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __repr__(self) -> str:
        return f"Trace({str(self.path)!r}, {len(self.steps)} steps, {len(self.points)} points)"

    def _owners(self, name: str) -> list["RankStep"]:
        """What holds `name` whole, step by step."""
        entry = entry_for(name, self.meta.get("tensors", {})) or {}
        if entry.get("partial") or entry.get("shard", {}).get("count", 1) != 1:
            raise LockstepError(f"{name}: spread over several ranks; read steps[i].ranks[r].tensors[{name!r}]")
        ranks = [[step.ranks[r] for r in sorted(step.ranks) if name in step.ranks[r].tensors] for step in self.steps]
        owners = [holders[0] for holders in ranks if holders]
        if not owners:
            raise LockstepError(f"{self.path}: no tensor {name!r}; it has {', '.join(self.names()[:8])}, …")
        return owners

    def _joined(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values [R, …] and index [R, 2], sorted; of equal keys the row of the latest step."""
        owners = self._owners(name)
        values = [np.moveaxis(rank.tensors[name].numpy(), rank.tensors[name].token_axis, 0) for rank in owners]
        if len({array.shape[1:] for array in values}) > 1:
            shapes = ", ".join(str(list(array.shape)) for array in values[:4])
            raise LockstepError(f"{name}: rows of several shapes ({shapes}, …) make no array; read rows({name!r})")
        tokens = [rank.tensors[name].rows for rank in owners]
        keys = np.concatenate(
            [np.stack([rank.sequences[t], rank.positions[t]], axis=1) for rank, t in zip(owners, tokens, strict=True)]
        )
        order = _order(keys)
        if len(values) == 1 and np.array_equal(order, np.arange(len(keys))):
            return values[0], keys
        return np.concatenate(values)[order], keys[order]


def _order(keys: np.ndarray) -> np.ndarray:
    """Which rows of `keys`, [R, 2], make a sorted table: no padding, and of equal keys the last."""
    latest = {(int(s), int(p)): row for row, (s, p) in enumerate(keys) if s >= 0}
    return np.array([latest[key] for key in sorted(latest)], np.int64)


def _keyed_rows(rank: RankStep, tensor: Tensor) -> Iterable[tuple[tuple[int, int], np.ndarray]]:
    values = np.moveaxis(tensor.numpy(), tensor.token_axis, 0)
    for row, token in enumerate(tensor.rows.tolist()):
        if rank.sequences[token] >= 0:
            yield (int(rank.sequences[token]), int(rank.positions[token])), values[row]


def load(path: str | os.PathLike) -> Trace:
    """Reads a trace directory. Everything is validated now; tensors are mapped when they are asked for.

    Warns of a trace that was not closed. Raises LockstepError for a trace that is being written, for a newer version
    and for anything malformed.

    >>> trace = lockstep.load("py.trace")
    >>> trace["layer_3_attn_q_rope"].shape
    (7, 6, 48)
    >>> trace.index("layer_3_attn_q_rope")[-1].tolist()
    [0, 6]
    >>> tensor = trace.steps[0].tensors["layer_3_attn_q_rope"]
    >>> tensor
    Tensor('layer_3_attn_q_rope', F32, [5, 6, 48])
    >>> tensor.numpy().flags.owndata, tensor.torch().shape
    (False, torch.Size([5, 6, 48]))
    """
    path = Path(path)
    try:
        _refuse_while_written(path)
        meta = check_meta(parse_json(read_trace_json(path / "trace.json")), str(path / "trace.json"))
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
        lock(path, fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


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
        expect(not twice, str(file), "each tensor once in a step", sorted(twice))
        tensors.update(found)
    complete = {r: t for r, t in by_rank.items() if not may_be_torn or ("positions" in t and "sequences" in t)}
    declared = meta.get("tensors", {})
    return {rank: _join_rank(str(path / entry["files"][0]["file"]), t, declared) for rank, t in complete.items()}


def _join_rank(where: str, tensors: dict[str, Tensor], declared: dict) -> RankStep:
    """Takes the format's own tensors out of `tensors` and checks the others against them."""
    for name in ("positions", "sequences"):
        expect(name in tensors, where, f"a tensor {name}", sorted(tensors))
    tokens = {name: _token_array(where, tensors.pop(name)) for name in STEP_TENSORS if name in tensors}
    positions, sequences, input_ids = (tokens.get(name) for name in STEP_TENSORS)
    check_tokens(where, positions, sequences, input_ids)
    extras = {name: tensors.pop(name) for name in list(tensors) if name.startswith(("rows:", "keys:"))}
    for tensor in tensors.values():
        try:
            _attach(tensor, extras, positions.size, declared)
        except LockstepError as error:
            raise LockstepError(f"{where}: {error}") from None
    return RankStep(positions, sequences, input_ids, tensors)


def _token_array(where: str, tensor: Tensor) -> np.ndarray:
    """i32 [T], read now."""
    expect(tensor.dtype == "I32" and len(tensor.shape) == 1, where, f"{tensor.name} as I32 [T]", tensor)
    return tensor.numpy().copy()


def _attach(tensor: Tensor, extras: dict[str, Tensor], num_tokens: int, declared: dict) -> None:
    """Gives a tensor its rows: and keys:, and checks that its shape fits them."""
    tensor.token_axis = axis_index(tensor.name, "token", 0, tensor.shape, declared)
    rows, keys = extras.get(f"rows:{tensor.name}"), extras.get(f"keys:{tensor.name}")
    count = num_tokens
    if rows is not None:
        array = _token_array(tensor.name, rows)
        check_rows(tensor.name, array, num_tokens)
        count, tensor._rows = array.size, rows
    found = tensor.shape[tensor.token_axis]
    expect(found == count, tensor.name, f"{count} rows along axis {tensor.token_axis}", list(tensor.shape))
    if keys is not None:
        expect(keys.dtype == "I32", keys.name, "I32", keys.dtype)
        check_keys(
            tensor.name, keys.shape, count, tensor.shape[axis_index(tensor.name, "key", -1, tensor.shape, declared)]
        )
        tensor.keys = keys


def _read_step_file(path: Path) -> dict[str, Tensor]:
    """The tensors that the header of one step file names, all inside the file. A tail without a name is ignored."""
    fd, status = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        room = min(status.st_size - 8, _MAX_STEP_HEADER)
        expect(2 <= length <= room, str(path), f"a header of 2 to {room} bytes", length)
        text = file.read(length)
    expect(text[:1] == b"{", str(path), "a header that begins with {", text[:8])
    try:
        header = parse_json(text)
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
    check_name(name)
    expect(isinstance(entry, dict), where, "{dtype, shape, data_offsets}", entry)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    expect(isinstance(dtype, str) and dtype in DTYPES, where, f"a dtype of {', '.join(DTYPES)}", dtype)
    expect(isinstance(shape, list) and len(shape) <= _MAX_AXES and all(map(is_count, shape)), where, "a shape", shape)
    expect(isinstance(offsets, list) and len(offsets) == 2 and all(map(is_count, offsets)), where, "offsets", offsets)
    size = DTYPES[dtype][0]
    # numpy cannot even hold an empty array whose other axes overflow.
    expect(_product(n for n in shape if n) * size < 1 << 63, where, "a shape that fits 63 bits", shape)
    expected = _product(shape) * size
    expect(offsets[1] - offsets[0] == expected, where, f"{expected} bytes as of {dtype} {shape}", offsets)
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
        expect(begin == at, where, f"the next tensor's data at offset {at}, without overlap or hole", [begin, end])
        at = end
    expect(at <= size, where, f"data within the file's {size} bytes; is it truncated?", at)
