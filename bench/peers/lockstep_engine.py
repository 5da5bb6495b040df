"""Lockstep through its C API."""

import ctypes
from pathlib import Path

import numpy as np

LIBRARY = Path(__file__).parents[2] / "build" / "release" / "src" / "liblockstep_c.so"


class Engine:
    def __init__(self, model: Path, threads: int):
        # The number of threads is OMP_NUM_THREADS, which compare.py sets for every engine.
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.lockstep_last_error.restype = ctypes.c_char_p
        self.library.lockstep_version.restype = ctypes.c_char_p
        self.name = f"Lockstep {self.library.lockstep_version().decode()}"
        self.model = ctypes.c_void_p()
        self.session = ctypes.c_void_p()
        self.check(self.library.lockstep_model_load(str(model).encode(), b"bf16", 0, ctypes.byref(self.model)))
        vocab = ctypes.c_int64()
        self.check(self.library.lockstep_model_config(self.model, b"vocab_size", ctypes.byref(vocab)))
        self.logits = np.empty(vocab.value, np.float32)

    def check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self.library.lockstep_last_error().decode())

    def reset(self, capacity: int) -> None:
        self.library.lockstep_session_free(self.session)
        self.session = ctypes.c_void_p()
        size = ctypes.c_int64(capacity)
        self.check(self.library.lockstep_session_create(self.model, 1, size, ctypes.byref(self.session)))

    def forward(self, tokens: list[int]) -> np.ndarray:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        out = self.logits.ctypes.data_as(ctypes.c_void_p)
        self.check(self.library.lockstep_forward(self.session, ids, None, ctypes.c_int64(len(tokens)), 0, out, None))
        return self.logits
