"""The C API by ctypes, as an engineer would use it from Python."""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from programs import C_LIBRARY

library = ctypes.CDLL(str(C_LIBRARY))
library.lockstep_last_error.restype = ctypes.c_char_p
library.lockstep_version.restype = ctypes.c_char_p


class Tensor(ctypes.Structure):
    """lockstep_tensor."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("point", ctypes.c_char_p),
        ("layer", ctypes.c_int32),
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("strides", ctypes.c_int64 * 4),
        ("data", ctypes.c_void_p),
        ("rows", ctypes.POINTER(ctypes.c_int32)),
    ]

    def array(self) -> np.ndarray:
        """A view of an F32 tensor; writing to it replaces the tensor."""
        shape = tuple(self.shape[: self.rank])
        rows, *row = shape
        memory = ctypes.cast(self.data, ctypes.POINTER(ctypes.c_float))
        span = (rows - 1) * self.strides[0] + math.prod(row)  # rows may lie apart
        floats = np.ctypeslib.as_array(memory, shape=(span,))
        return np.lib.stride_tricks.as_strided(floats, shape, [4 * stride for stride in self.strides[: self.rank]])


TAP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(Tensor))


def check(status: int) -> None:
    assert status == 0, library.lockstep_last_error().decode()


class Model:
    def __init__(self, directory: Path, dtype: str = "f32"):
        self.handle = ctypes.c_void_p()
        check(library.lockstep_model_load(str(directory).encode(), dtype.encode(), 0, ctypes.byref(self.handle)))
        self.tap = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception: object) -> None:
        library.lockstep_model_free(self.handle)

    def set_debug(self, trace: Path | None) -> None:
        path = None if trace is None else str(trace).encode()
        check(library.lockstep_model_set_debug(self.handle, path, None))

    def set_tap(self, function: Callable[[Tensor], None], points: str = "") -> None:
        self.tap = TAP(lambda _user, tensor: function(tensor.contents))  # kept alive as long as it is set
        check(library.lockstep_model_set_tap(self.handle, self.tap, None, points.encode()))

    def forward(self, tokens: list[int], vocab: int) -> np.ndarray:
        """Logits of all rows of a fresh sequence: [tokens, vocab]."""
        session = ctypes.c_void_p()
        check(library.lockstep_session_create(self.handle, 1, ctypes.c_int64(len(tokens)), ctypes.byref(session)))
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        logits = np.empty((len(tokens), vocab), np.float32)
        out = logits.ctypes.data_as(ctypes.c_void_p)
        status = library.lockstep_forward(session, ids, None, ctypes.c_int64(len(tokens)), 1, out, None)
        message = library.lockstep_last_error().decode()
        library.lockstep_session_free(session)
        assert status == 0, message
        return logits
