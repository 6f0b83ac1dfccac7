"""llama.cpp behind a pipe, run as a script by any interpreter that has llama-cpp-python: JSON lines in, JSON lines out.

"type" is a cache's type, "f16 -fa off" one without flash attention.

Requests: {"do": "open", "name", "model", "type", "context", "threads"} loads a model once a path and fills a cache of that type;
{"do": "step", "name"} decodes one token on top of it: {"seconds"}; {"do": "prefill", "model", "type", "tokens", "threads"}
computes a prompt in an empty cache: {"seconds"}; {"do": "quantize", "model", "to", "file_type", "threads"}: {};
{"do": "version"}: {"version"}.

The cache is filled by decoding 512 tokens once and adding their state again and again: time depends on how many cells a
sequence has, not on what is in them.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from importlib import import_module
from typing import Any

llama: Any = import_module("llama_cpp")

_PIECE = 512
_ROOM = 256
_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # ggml's numbers
_NO_FLASH = " -fa off"
_MAIN, _SPARE = 0, 1  # sequences: the one that is measured, the one that pieces pass through


class Session:
    """One context of llama.cpp with a filled cache."""

    def __init__(self, model: Any, type_: str, context: int, threads: int, room: int = _ROOM) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context + room, _PIECE, _PIECE
        params.n_seq_max, params.kv_unified = 2, True
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _TYPES[type_.removesuffix(_NO_FLASH)]
        params.flash_attn_type = 0 if type_.endswith(_NO_FLASH) else 1
        params.offload_kqv = params.op_offload = False
        self.context: Any = llama.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp gave no context of {context} tokens with a {type_} cache")
        self.memory: Any = llama.llama_get_memory(self.context)
        self._fill(context)

    def step(self) -> float:
        """Decode one token, then forget it; seconds of the decoding."""
        position = llama.llama_memory_seq_pos_max(self.memory, _MAIN) + 1
        seconds = self._decode([1], position, _MAIN)
        llama.llama_memory_seq_rm(self.memory, _MAIN, position, -1)
        return seconds

    def _fill(self, tokens: int) -> None:
        piece = min(_PIECE, tokens)
        self._decode([1 + i % 7 for i in range(piece)], 0, _SPARE)
        size = llama.llama_state_seq_get_size(self.context, _SPARE)
        state = (ctypes.c_uint8 * size)()
        llama.llama_state_seq_get_data(self.context, state, size, _SPARE)
        self._hand_over()
        for start in range(piece, tokens, piece):
            if not llama.llama_state_seq_set_data(self.context, state, size, _SPARE):
                raise RuntimeError("llama.cpp refused a state of its own")
            llama.llama_memory_seq_rm(self.memory, _SPARE, tokens - start, -1)
            self._hand_over()

    def _hand_over(self) -> None:
        llama.llama_memory_seq_cp(self.memory, _SPARE, _MAIN, -1, -1)
        llama.llama_memory_seq_rm(self.memory, _SPARE, -1, -1)

    def _decode(self, tokens: list[int], position: int, sequence: int) -> float:
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i == len(tokens) - 1
        started = time.perf_counter()
        code = llama.llama_decode(self.context, batch)
        llama.llama_synchronize(self.context)
        seconds = time.perf_counter() - started
        llama.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}")
        return seconds


def _load(path: str) -> Any:
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model: Any = llama.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp can't load {path}")
    return model


def _prefill(model: Any, type_: str, tokens: int, threads: int) -> float:
    """Seconds of a prompt of `tokens`, in pieces of 512, after a piece that was thrown away again."""
    session = Session(model, type_, _PIECE, threads, room=tokens)
    llama.llama_memory_seq_rm(session.memory, _MAIN, -1, -1)
    prompt = [1 + i % 7 for i in range(tokens)]
    return sum(session._decode(prompt[start : start + _PIECE], start, _MAIN) for start in range(0, tokens, _PIECE))


def _quantize(source: str, target: str, file_type: int, threads: int) -> None:
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, threads
    if llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp can't quantize {source}")


def main() -> None:
    """Answer requests until the input ends."""
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    models: dict[str, Any] = {}
    sessions: dict[str, Session] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "open":
                path = request["model"]
                models[path] = models.get(path) or _load(path)
                sessions[request["name"]] = Session(
                    models[path], request["type"], request["context"], request["threads"]
                )
            elif request["do"] == "prefill":
                path = request["model"]
                models[path] = models.get(path) or _load(path)
                answer["seconds"] = _prefill(models[path], request["type"], request["tokens"], request["threads"])
            elif request["do"] == "quantize":
                _quantize(request["model"], request["to"], request["file_type"], request["threads"])
            elif request["do"] == "step":
                answer["seconds"] = sessions[request["name"]].step()
            else:
                answer["version"] = llama.__version__
        except RuntimeError as error:
            answer["error"] = str(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
