"""The writer of traces: the directory and its lock, trace.json, and the steps."""

import fcntl
import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lockstep.errors import LockstepError
from lockstep.selection import Selection
from lockstep.trace_layout import (
    FORMAT,
    STEP_FILE,
    STEP_TENSORS,
    VERSION,
    axis_index,
    check_keys,
    check_name,
    check_rows,
    check_tokens,
    is_trace_file,
    lock,
    parse_json,
)
from lockstep.trace_meta import check_meta, read_trace_json, to_json
from lockstep.trace_step_file import StepFile, dtype_of, is_disk_full, take, to_int32


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
        self._file = StepFile(trace.path / self.file_name(0), list(zip(STEP_TENSORS, tokens, strict=False)))

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
        check_name(name)
        if name in STEP_TENSORS or name == "__metadata__" or name.startswith(("rows:", "keys:")):
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
        dtype_of(name, array)
        shape, tensors = tuple(array.shape), self._trace.tensors
        axis = axis_index(name, "token", 0, shape, tensors)
        rows = None if rows is None else to_int32(f"rows:{name}", rows)
        count = self._num_tokens if rows is None else rows.size
        if shape[axis] != count:
            expected = f"expected {count} rows along axis {axis}"
            raise LockstepError(f"{name}: {expected}, found shape {list(shape)}; other rows need rows=")
        if rows is not None:
            check_rows(name, rows, self._num_tokens)
        if keys is not None:
            keys = to_int32(f"keys:{name}", keys, dims=2)
            check_keys(name, keys.shape, count, shape[axis_index(name, "key", -1, shape, tensors)])
        if self._selected is not None:
            kept = self._selected if rows is None else np.flatnonzero(np.isin(rows, self._selected))
            array, keys = take(array, kept, axis), None if keys is None else keys[kept]
            rows = kept if rows is None else rows[kept]
        extra = [(f"rows:{name}", rows), (f"keys:{name}", keys)]
        return [(key, value) for key, value in extra if value is not None] + [(name, array)]

    def _append(self, group: list[tuple[str, Any]]) -> None:
        if self._file.append(group):
            return
        file = self.file_name(self._num_files)
        continuation = StepFile(self._trace.path / file, [])
        try:
            self._trace.list_file(self, file)
        except LockstepError:
            continuation.close()
            continuation.path.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file, self._num_files = continuation, self._num_files + 1
        if not self._file.append(group):
            raise LockstepError(f"{group[-1][0]}: its entry does not fit an empty header of {self._file.region} bytes")


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
        check_meta(json.loads(to_json(self._meta)), str(self.path))
        self._mutex = threading.RLock()
        self._open_steps: list[StepWriter] = []
        self._next_step: dict[int, int] = {}
        self._lock_fd = claim(self.path)
        try:
            self._write_meta()
            for name in os.listdir(self.path):
                if STEP_FILE.fullmatch(name):
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
        tokens = (to_int32("positions", positions), to_int32("sequences", sequences))
        tokens += () if input_ids is None else (to_int32("input_ids", input_ids),)
        check_tokens(f"step {index}", *tokens, *(() if len(tokens) == 3 else (None,)))
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
        text = to_json(self._meta)
        try:
            temporary.write_bytes(text)
            os.rename(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            full = f": disk full, {len(text)} bytes are missing" if is_disk_full(error) else f": {error.strerror}"
            raise LockstepError(f"{path}: cannot write{full}") from error

    def _unlock(self) -> None:
        os.close(self._lock_fd)
        self._lock_fd = -1


def claim(path: Path) -> int:
    """Makes and locks the directory, checks that a trace may be written there; returns the lock's descriptor."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LockstepError(f"{path}: cannot make a trace directory: {error.strerror}") from error
    try:
        lock(path, fd, fcntl.LOCK_EX)
        check_replaceable(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_replaceable(path: Path) -> None:
    """Raises LockstepError unless directory `path` is empty or holds a trace."""
    try:
        names = os.listdir(path)
        text = read_trace_json(path / "trace.json") if "trace.json" in names else b"null"
        meta = parse_json(text)
    except (OSError, ValueError, LockstepError) as error:
        raise LockstepError(f"{path}: refusing to replace what cannot be read as a trace: {error}") from None
    is_trace = isinstance(meta, dict) and meta.get("format") == FORMAT
    if not is_trace and any(name == "trace.json" or not is_trace_file(name) for name in names):
        raise LockstepError(f"{path}: expected an empty directory or a trace, found other files; choose another place")
