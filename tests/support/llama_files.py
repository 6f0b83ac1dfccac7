"""GGUF files for tests, quantized by llama.cpp itself, and what llama.cpp makes of them."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import numpy as np

FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}
_QUIET: list[Any] = []


def llama() -> Any:
    """llama_cpp, silent."""
    import llama_cpp

    if not _QUIET:
        _QUIET.append(llama_cpp.llama_log_callback(lambda *_: None))
        llama_cpp.llama_log_set(_QUIET[0], ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def quantize(source: Path, target: Path, kind: str) -> Path:
    """Write `source` in another file type by llama_model_quantize."""
    module = llama()
    parameters = module.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.allow_requantize = FILE_TYPES[kind], 2, True
    assert module.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target


class LlamaCpp:
    """One model in llama.cpp with an f16 cache."""

    def __init__(self, path: Path, context: int, threads: int = 1) -> None:
        self.module = llama()
        parameters = self.module.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = self.module.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model
        settings = self.module.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = 0
        self.context = self.module.llama_init_from_model(self.model, settings)
        assert self.context
        vocabulary = self.module.llama_model_get_vocab(self.model)
        self.vocabulary = self.module.llama_vocab_n_tokens(vocabulary)

    def logits(self, ids: list[int], start: int) -> np.ndarray:
        """float32 [len(ids), vocabulary], the tokens standing at positions start, start + 1, ..."""
        memory = self.module.llama_get_memory(self.context)
        self.module.llama_memory_seq_rm(memory, 0, start, -1)
        batch = self.module.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, True
        assert self.module.llama_decode(self.context, batch) == 0
        rows = [
            np.ctypeslib.as_array(self.module.llama_get_logits_ith(self.context, i), (self.vocabulary,)).copy()
            for i in range(len(ids))
        ]
        self.module.llama_batch_free(batch)
        return np.stack(rows)

    def close(self) -> None:
        """Free both."""
        self.module.llama_free(self.context)
        self.module.llama_model_free(self.model)


def perplexity(rows: np.ndarray, following: list[int]) -> float:
    """exp of the mean negative log-likelihood of `following` under the rows of logits."""
    shifted = rows.astype(np.float64) - rows.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return math.exp(-float(np.mean(logs[np.arange(len(following)), following])))
