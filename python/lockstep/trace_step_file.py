"""A step file that grows, and the numpy arrays and torch tensors that go into it. Torch is never imported here."""

import errno
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import LockstepError
from lockstep.trace_layout import DTYPES

PAGE = 4096
# Length word and header region of a step file: room for about 1000 tensors; more continue in a second file.
HEADER_BYTES = 128 * 1024
_BY_NAME = {names[2]: dtype for dtype, names in DTYPES.items()}  # numpy, ml_dtypes and torch agree on these names


class StepFile:
    """One growing safetensors file. A group of tensors is appended whole or not at all."""

    def __init__(self, path: Path, first: list[tuple[str, Any]]) -> None:
        """Creates `path` with the tensors `first` in it; nothing is there under that name if this fails."""
        self.path = path
        self.region = HEADER_BYTES
        self._data_bytes = 0
        opening = b'{"__metadata__":{"format":"lockstep-step"}'
        self._cursor = 8 + len(opening)
        length = (self.region - 8).to_bytes(8, "little")
        header = length + opening + b" " * (self.region - 8 - len(opening) - 1) + b"}"
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
            dtype, shape = dtype_of(name, array), [int(n) for n in array.shape]
            end = at + int(np.prod(shape, dtype=object)) * DTYPES[dtype][0]
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            entries += f",{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}".encode()
            at = end
        place = self._place(len(entries), group[0][0]) if group else self._cursor
        if place is None:
            return False
        before = self._data_bytes
        try:
            for name, array in group:
                self._data_bytes += self._write_all(name, _bytes_of(array), self.region + self._data_bytes)
            self._write_entries(entries, place)
        except BaseException:
            self._data_bytes = before
            with suppress(OSError):
                os.ftruncate(self._fd, self.region + before)
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
        return place if place + length < self.region else None  # the last byte is the closing brace

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
        if not is_disk_full(error):
            return LockstepError(f"{self.path}: cannot write {name}: {error.strerror}")
        return LockstepError(
            f"{self.path}: disk full while writing {name}: {missing} bytes are missing; all earlier tensors are whole; "
            "free space, or select less (LOCKSTEP_POINTS, LOCKSTEP_LAYERS, LOCKSTEP_STEPS, LOCKSTEP_ROWS)"
        )


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def dtype_of(name: str, array: Any) -> str:
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


def to_int32(what: str, values: Any, dims: int = 1) -> np.ndarray:
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


def take(array: Any, indices: np.ndarray, axis: int) -> Any:
    """Rows `indices` along `axis` of a numpy or torch array; a torch one is cut before it leaves its device."""
    if not _is_torch(array):
        return np.take(array, indices, axis=axis)
    torch = sys.modules["torch"]
    return array.detach().index_select(axis, torch.as_tensor(indices, dtype=torch.int64, device=array.device))


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


def _is_torch(array: Any) -> bool:
    """Whether `array` is a torch tensor, found out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)
