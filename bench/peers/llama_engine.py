"""llama.cpp through the C API that llama-cpp-python carries; its defaults but for the threads (the cache is f16)."""

import importlib.metadata
from pathlib import Path

import llama_cpp as llama
import numpy as np

LONGEST = 1024  # tokens that the cache has room for


@llama.llama_log_callback
def silent(_level: int, _text: bytes, _user: object) -> None:
    pass


class Engine:
    def __init__(self, model: Path, threads: int):
        llama.llama_log_set(silent, None)
        llama.llama_backend_init()
        self.name = f"llama.cpp of llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
        path = str(model / "model.gguf").encode()
        self.model = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx = LONGEST
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"{model}: llama.cpp cannot load it")
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def reset(self, capacity: int) -> None:
        if capacity > LONGEST:
            raise RuntimeError(f"{capacity} tokens are more than {LONGEST}")
        llama.llama_memory_clear(llama.llama_get_memory(self.context), False)

    def forward(self, tokens: list[int]) -> np.ndarray:
        ids = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(self.context, llama.llama_batch_get_one(ids, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, -1), shape=(self.vocab,))
