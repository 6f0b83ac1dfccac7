"""llama.cpp's attention as a peer: a model of random weights whose time is attention, timed in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np

from stratakv.bench.timing import Case
from stratakv.bench.worker import Worker
from stratakv.errors import UserError

# With f16 its flash attention is the slower way on a CPU (measured: 37 ms a step against 27 at 1k, 222 against 97 at 8k), so both
# are peers; quantized V goes only with it.
F16_PEERS = ("f16", "f16 -fa off")
TYPES = (*F16_PEERS, "q8_0", "q4_0")
LAYERS = 2
_WIDTH = 64
_VOCABULARY = 64


def llama_python(given: str | None) -> str | None:
    """The interpreter that has llama-cpp-python: the one given, else this one if it has, else None."""
    if given is not None:
        path = Path(given)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise UserError(
                f"--llama-python {given}: not a program; give the python of an environment with llama-cpp-python"
            )
        return given
    return sys.executable if importlib.util.find_spec("llama_cpp") else None


def llama_worker(python: str) -> Worker:
    """A process with llama.cpp; see llama_worker.py for what it answers. -P: its imports are not ours, nor is what
    `stratakv` sets for torch's OpenMP."""
    script = Path(__file__).with_name("llama_worker.py")
    return Worker([python, "-P", str(script)], "llama.cpp (llama-cpp-python)", without=("GOMP_SPINCOUNT",))


def steps(worker: Worker, model: Path, types: tuple[str, ...], contexts: list[int], threads: int) -> dict[str, Case]:
    """One case a cache type and context, named "llama.cpp TYPE @CONTEXT": decoding a token on top of a filled cache."""
    cases: dict[str, Case] = {}
    for type_ in types:
        for context in contexts:
            name = step_name(type_, context)
            worker.ask(do="open", name=name, model=str(model), type=type_, context=context, threads=threads)
            cases[name] = _step(worker, name)
    return cases


def step_name(type_: str, context: int) -> str:
    """The name of a case of `steps`."""
    return f"llama.cpp {type_} @{context}"


def _step(worker: Worker, name: str) -> Case:
    return lambda turn: float(worker.ask(do="step", name=name)["seconds"])


def write_attention_model(path: Path, *, q_heads: int, kv_heads: int, head_dim: int, context: int) -> None:
    """A GGUF file of the llama architecture with random weights and next to nothing beside attention: 2 layers, width and MLP
    of 64, 64 tokens without text."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(q_heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(
            f"{name}.weight", random.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)
        )

    add("token_embd", _VOCABULARY, _WIDTH)
    add("output", _VOCABULARY, _WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, dtype=np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(_WIDTH, dtype=np.float32))
        add(f"blk.{layer}.attn_q", q_heads * head_dim, _WIDTH)
        add(f"blk.{layer}.attn_k", kv_heads * head_dim, _WIDTH)
        add(f"blk.{layer}.attn_v", kv_heads * head_dim, _WIDTH)
        add(f"blk.{layer}.attn_output", _WIDTH, q_heads * head_dim)
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            add(f"blk.{layer}.{name}", _WIDTH, _WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
