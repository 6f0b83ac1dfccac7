"""Stock llama.cpp with its K and V rewritten on the way to the cache: any GGUF model that llama.cpp runs can be measured.

llama.cpp calls back after each node of its graph that was asked for. Nodes `Kcur-<layer>` and `Vcur-<layer>` (the last of that
name in a graph: after RoPE) hold a layer's new states [head_dim, kv_heads, tokens]; they are encoded by a type of ours,
decoded, and written back. The cache underneath is f16.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratakv.errors import UserError
from stratakv.kernels.encode import encode
from stratakv.kvtypes import kv_type

_NODE = re.compile(rb"([KV])cur-(\d+)")
Cell = tuple[int, str]
"""(layer, "k" or "v")."""


@functools.cache
def _silence() -> Any:
    """A log function of llama.cpp that says nothing. Kept for the life of the process: llama.cpp calls the last one that was
    set, whichever probe set it."""
    llama: Any = import_module("llama_cpp")
    return llama.llama_log_callback(lambda *_: None)


class LlamaProbe:
    """One model in llama.cpp with an f16 cache of `context` tokens, computed in one piece. Close it when done.

    shapes: (head_dim, kv_heads) of each cell that can be rewritten. Raises UserError where llama.cpp can't load the model or
    names its K and V in another way (fused QKV, MLA).
    """

    def __init__(self, path: Path, context: int, threads: int) -> None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise UserError(
                "measuring through llama.cpp needs the extra: pip install 'stratakv[gguf]' (llama-cpp-python is not installed)"
            )
        self._llama: Any = import_module("llama_cpp")
        folder = Path(str(self._llama.__file__)).parent / "lib"
        (base,) = [file for file in folder.glob("libggml-base.*") if file.suffix in (".so", ".dylib")]
        self._ggml = ctypes.CDLL(str(base))
        self._ggml.ggml_get_name.restype = ctypes.c_char_p
        self._ggml.ggml_nelements.restype = ctypes.c_int64
        self._ggml.ggml_nbytes.restype = ctypes.c_size_t
        for name in ("ggml_get_name", "ggml_nelements", "ggml_nbytes"):
            getattr(self._ggml, name).argtypes = [ctypes.c_void_p]
        for name in ("ggml_backend_tensor_get", "ggml_backend_tensor_set"):
            getattr(self._ggml, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._llama.llama_log_set(_silence(), ctypes.c_void_p(0))
        self._llama.llama_backend_init()
        self.context = context
        self._wanted: Mapping[Cell, str] = {}
        self._seen: Counter[bytes] = Counter()
        self._last: Counter[bytes] | None = None  # how often each name comes in one graph
        self._error: Exception | None = None
        self.shapes: dict[Cell, tuple[int, int]] = {}
        self._open(path, threads)
        self._learn_names(path)

    def _open(self, path: Path, threads: int) -> None:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._llama.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise UserError(f"llama.cpp can't load {path}: update llama-cpp-python, or check the file")
        settings = self._llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self.context
        settings.n_threads = settings.n_threads_batch = threads
        self._callback = self._llama.ggml_backend_sched_eval_callback(self._node)
        settings.cb_eval = self._callback
        self._session = self._llama.llama_init_from_model(self._model, settings)
        if not self._session:
            self._llama.llama_model_free(self._model)
            raise UserError(f"llama.cpp gave no context of {self.context} tokens for {path}")
        self._vocabulary = self._llama.llama_model_get_vocab(self._model)
        self.tokens_in_vocabulary = int(self._llama.llama_vocab_n_tokens(self._vocabulary))

    def _learn_names(self, path: Path) -> None:
        first = [max(0, int(self._llama.llama_vocab_bos(self._vocabulary)))] * 2
        self._run(first)
        self._last = Counter(self._seen)
        # shapes: values of a token, split by the heads that the file names
        metadata = self._metadata
        architecture = metadata("general.architecture")
        heads = [
            int(number) for number in re.findall(r"\d+", metadata(f"{architecture}.attention.head_count_kv") or "")
        ]
        for name, values in self._values.items():
            match = _NODE.fullmatch(name)
            assert match is not None
            layer, side = int(match[2]), match[1].decode().lower()
            kv_heads = (
                heads[layer] if len(heads) > 1 else (heads or [self._llama.llama_model_n_head_kv(self._model)])[0]
            )
            if kv_heads and values % (len(first) * kv_heads) == 0:
                self.shapes[layer, side] = values // (len(first) * kv_heads), kv_heads
        layers = {layer for layer, _ in self.shapes}
        if not layers or any((layer, side) not in self.shapes for layer in layers for side in "kv"):
            raise UserError(
                f"{path}: llama.cpp computes K and V of architecture {architecture!r} without nodes of their own (fused or "
                "latent): they can't be measured one by one"
            )

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(4096)
        length = self._llama.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if length >= 0 else ""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it."""
        return self._metadata("general.architecture")

    def tokenize(self, text: str) -> list[int]:
        """llama.cpp's tokens, BOS first where the model wants it."""
        data = text.encode()
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self._vocabulary, data, len(data), tokens, room, True, False)
        if count < 0:
            raise UserError("llama.cpp can't tokenize the text")
        return list(tokens[:count])

    def logits(self, ids: list[int], cells: Mapping[Cell, str]) -> torch.Tensor:
        """Predictions of the second half of a context, [scored, vocab] float32, with these cells stored as these types.

        ids: at most `context` tokens. As everywhere, row i predicts the token at position len(ids) // 2 + 1 + i.
        """
        self._wanted = cells
        self._run(ids)
        first = len(ids) // 2
        rows = [
            np.ctypeslib.as_array(
                self._llama.llama_get_logits_ith(self._session, i), (self.tokens_in_vocabulary,)
            ).copy()
            for i in range(first, len(ids) - 1)
        ]
        return torch.from_numpy(np.stack(rows))

    def _run(self, ids: list[int]) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._session), True)
        self._seen.clear()
        self._values: dict[bytes, int] = {}
        self._error = None
        batch = self._llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i >= len(ids) // 2
        code = self._llama.llama_decode(self._session, batch)
        self._llama.llama_batch_free(batch)
        if self._error is not None:
            raise self._error
        if code:
            raise UserError(f"llama.cpp failed to compute {len(ids)} tokens (code {code})")

    def _node(self, tensor: int, asked: bool, _: Any) -> bool:
        """Called for each node: first whether it is wanted, then, computed, with it. Exceptions can't pass through C."""
        name = self._ggml.ggml_get_name(tensor)
        match = _NODE.fullmatch(name)
        if match is None:
            return not asked
        cell = int(match[2]), match[1].decode().lower()
        if asked:
            return self._last is None or cell in self._wanted
        self._seen[name] += 1
        self._values[name] = int(self._ggml.ggml_nelements(tensor))
        if self._last is not None and self._seen[name] == self._last[name]:
            try:
                self._rewrite(tensor, cell)
            except Exception as error:
                self._error = error
                return False
        return True

    def _rewrite(self, tensor: int, cell: Cell) -> None:
        dim, heads = self.shapes[cell]
        count = int(self._ggml.ggml_nelements(tensor))
        if self._ggml.ggml_nbytes(tensor) != 4 * count:
            raise UserError(f"llama.cpp's {cell[1].upper()} of layer {cell[0]} is no contiguous float32 tensor")
        values = np.empty(count, dtype=np.float32)
        self._ggml.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
        type_ = kv_type(self._wanted[cell])
        packed = encode(type_, torch.from_numpy(values).view(-1, heads, dim))
        stored = type_.decode(packed, dim).float().contiguous()
        self._ggml.ggml_backend_tensor_set(tensor, stored.data_ptr(), 0, values.nbytes)

    def close(self) -> None:
        """Give llama.cpp's memory back."""
        self._llama.llama_free(self._session)
        self._llama.llama_model_free(self._model)
