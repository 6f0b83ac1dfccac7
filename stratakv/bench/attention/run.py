"""`stratakv bench attention`: decode attention over packed pages beside torch's and llama.cpp's, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from stratakv.bench.attention.caches import PackedCache, Pair, Shape, dense_pairs, packed_caches, pair_name
from stratakv.bench.attention.encode import encode_rows
from stratakv.bench.attention.goals import goals
from stratakv.bench.attention.prefill import prefill_rows
from stratakv.bench.peers import llama as llama_cpp
from stratakv.bench.peers.torch_attention import DECODE_PEERS, Attention
from stratakv.bench.result import Report, quiet, result
from stratakv.bench.timing import (
    ROTATE_BYTES,
    Case,
    interleaved,
    load_average,
    reader,
    spread,
    timed,
    torch_threads,
)
from stratakv.bench.worker import Worker
from stratakv.kernels.choice import kernel_name

SCHEMA = "stratakv/bench-attention/1"
PAIRS: tuple[Pair, ...] = (
    ("f16", "f16"),
    ("q8_0", "q8_0"),
    ("turbo4", "turbo4"),
    ("turbo3", "turbo3"),
    ("turbo2", "turbo2"),
    ("q8_0", "turbo4"),
    ("tcq4", "tcq4"),
    ("tcq3", "tcq3"),
)
CONTEXTS = (1024, 8192, 32768, 131072)
GROUPS = (4, 1, 8)
LLAMA_GROUPS = 4
LLAMA_MOST = 32768
_READ = "read"


@dataclass(frozen=True)
class AttentionSettings:
    """What to measure. contexts: tokens; groups: query heads a kv head; pairs: K and V types; parts: of decode, prefill,
    encode; prefill: (tokens, queries at their end); seconds: for each context and group; rotate_bytes: caches of a case
    together; llama_python: an interpreter with llama-cpp-python, or None."""

    contexts: tuple[int, ...] = CONTEXTS
    groups: tuple[int, ...] = GROUPS
    pairs: tuple[Pair, ...] = PAIRS
    threads: int = field(default_factory=torch.get_num_threads)
    parts: tuple[str, ...] = ("decode", "prefill", "encode")
    shape: Shape = field(default_factory=Shape)
    prefill: tuple[tuple[int, int], ...] = ((8192, 8192), (32768 + 512, 512))
    seconds: float = 10.0
    rotate_bytes: int = ROTATE_BYTES
    llama_python: str | None = None


def bench_attention(settings: AttentionSettings, *, command: str = "", report: Report = quiet) -> dict[str, Any]:
    """Measure; returns the data of `--json`, schema "stratakv/bench-attention/1". report: called with a line for each part.

    Raises UserError when llama_python can't do its part.
    """
    load = load_average()
    rows: list[dict[str, Any]] = []
    prefill: list[dict[str, Any]] = []
    encode: list[dict[str, Any]] = []
    read: list[float] = []
    with torch.inference_mode(), torch_threads(settings.threads):
        if "decode" in settings.parts:
            rows, read = _decode(settings, report)
        if "prefill" in settings.parts:
            prefill = prefill_rows(settings.shape, settings.pairs, settings.prefill, settings.seconds, report)
        if "encode" in settings.parts:
            report("encode, one thread")
            encode = encode_rows(settings.shape, settings.seconds)
    measured = {
        "kernel": kernel_name(),
        "threads": settings.threads,
        "rotate_bytes": settings.rotate_bytes,
        "read_bandwidth_gb_s": median(read) if read else None,
        "rows": rows,
        "prefill": prefill,
        "encode": encode,
        "goals": goals(rows, prefill, encode),
    }
    return result(SCHEMA, measured, command=command, load=load, notes=_notes(settings))


def _decode(settings: AttentionSettings, report: Report) -> tuple[list[dict[str, Any]], list[float]]:
    rows, read = [], []
    with ExitStack() as stack:
        llama = _open_llama(settings, stack) if settings.llama_python else None
        for context in settings.contexts:
            sources = _Sources(settings, context)
            for groups in settings.groups:
                report(f"decode, {context} tokens, {groups} query heads a kv head")
                found, bandwidth = _decode_rows(settings, context, groups, sources, llama)
                rows += found
                read.append(bandwidth)
    return rows, read


class _Sources:
    """The caches and tensors of one context, shared by its groups."""

    def __init__(self, settings: AttentionSettings, context: int) -> None:
        shape, rotate = settings.shape, settings.rotate_bytes
        self.packed = {pair: packed_caches(shape, pair, context, rotate) for pair in settings.pairs}
        self.dense = {
            dtype: dense_pairs(shape, dtype, context, rotate) for dtype in {dtype for dtype, _ in DECODE_PEERS.values()}
        }
        self.read = reader(max(rotate, 2**20))


def _decode_rows(
    settings: AttentionSettings, context: int, groups: int, sources: _Sources, llama: _Llama | None
) -> tuple[list[dict[str, Any]], float]:
    """The rows of one context and group, and the read bandwidth in GB/s measured among them."""
    shape = settings.shape
    query = torch.randn(1, shape.kv_heads * groups, 1, shape.head_dim, generator=torch.Generator().manual_seed(2))
    cases: dict[str, Case] = {_READ: sources.read}
    for pair, caches in sources.packed.items():
        cases[pair_name(pair)] = ours(query.to(torch.bfloat16), caches)
    for name, (dtype, attention) in DECODE_PEERS.items():
        cases[name] = _torch_case(attention, query.to(dtype), sources.dense[dtype])
    beside = llama.cases(context, groups) if llama else {}
    seconds = interleaved({**cases, **beside}, seconds=settings.seconds)
    read_bytes = max(settings.rotate_bytes, 2**20) // 4 * 4
    bandwidth = read_bytes / median(seconds[_READ]) / 1e9
    common = {
        "context": context,
        "q_heads": shape.kv_heads * groups,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "threads": settings.threads,
        "read_gb_s": bandwidth,
    }
    rows = [
        _row(pair_name(pair), pair, None, shape.packed_bytes(pair, context), context, seconds[pair_name(pair)], common)
        for pair in settings.pairs
    ]
    for name, (dtype, _) in DECODE_PEERS.items():
        type_ = "bf16" if dtype == torch.bfloat16 else "f32"
        size = shape.packed_bytes((type_, type_), context)
        rows.append(_row(name, (type_, type_), "torch", size, context, seconds[name], common))
    if llama and beside:
        rows += [row for type_ in llama_cpp.TYPES if (row := llama.row(type_, context, seconds, common, shape))]
    return rows, bandwidth


def ours(query: torch.Tensor, caches: list[PackedCache]) -> Case:
    """Attention of one token over packed caches in turn, the rotations of query and output included."""
    return timed(lambda turn: caches[turn % len(caches)].attend(query))


def _torch_case(attention: Attention, query: torch.Tensor, dense: list[tuple[torch.Tensor, torch.Tensor]]) -> Case:
    return timed(lambda turn: attention(query, *dense[turn % len(dense)]))


def _row(
    name: str,
    pair: Pair,
    peer: str | None,
    nbytes: int,
    tokens: int,
    seconds: list[float],
    common: Mapping[str, Any],
) -> dict[str, Any]:
    times = spread(seconds)
    gb_s = nbytes / times["ms"] / 1e6
    return {
        "name": name,
        "k": pair[0],
        "v": pair[1],
        **common,
        **times,
        "ns_per_head_row": 1e6 * times["ms"] / (tokens * common["q_heads"]),
        "packed_gb_s": gb_s,
        "share_of_read_bandwidth": gb_s / common["read_gb_s"],
        "peer": peer,
    }


@dataclass(frozen=True)
class _Llama:
    """llama.cpp's steps at the smallest context and at each longer one, and how they become attention's time."""

    steps: Mapping[int, dict[str, Case]]  # by context
    smallest: int

    def cases(self, context: int, groups: int) -> dict[str, Case]:
        if groups != LLAMA_GROUPS or context == self.smallest or context not in self.steps:
            return {}
        return {**self.steps[self.smallest], **self.steps[context]}

    def row(
        self, type_: str, context: int, seconds: Mapping[str, list[float]], common: Mapping[str, Any], shape: Shape
    ) -> dict[str, Any] | None:
        """None where noise hides the difference of the steps."""
        short = median(seconds[llama_cpp.step_name(type_, self.smallest)])
        long = seconds[llama_cpp.step_name(type_, context)]
        tokens = context - self.smallest
        if median(long) <= short:
            return None
        layer = [(value - short) / llama_cpp.LAYERS for value in long]
        stored = type_.split()[0]
        size = shape.packed_bytes((stored, stored), tokens)
        return _row(f"llama.cpp {type_}", (stored, stored), "llama.cpp", size, tokens, layer, common)


def _open_llama(settings: AttentionSettings, stack: ExitStack) -> _Llama | None:
    contexts = sorted(context for context in settings.contexts if context <= LLAMA_MOST)
    if LLAMA_GROUPS not in settings.groups or len(contexts) < 2:
        return None
    assert settings.llama_python is not None
    shape = settings.shape
    model = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "attention.gguf"
    llama_cpp.write_attention_model(
        model,
        q_heads=shape.kv_heads * LLAMA_GROUPS,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        context=contexts[-1],
    )
    worker: Worker = stack.enter_context(llama_cpp.llama_worker(settings.llama_python))
    steps = {
        context: llama_cpp.steps(worker, model, llama_cpp.TYPES, [context], settings.threads) for context in contexts
    }
    return _Llama(steps, contexts[0])


def _notes(settings: AttentionSettings) -> list[str]:
    notes = [
        "contexts may exceed what a model was trained for: times say nothing about quality",
        "random states, filled through the cache's own update; from 4,096 tokens on they repeat",
        "queries in bf16; ours includes rotating the query and un-rotating the output; cases take turns, medians",
        f"read bandwidth: float32 sum over {settings.rotate_bytes / 2**20:.0f} MiB with the same threads, among the cases",
    ]
    if settings.llama_python:
        notes.append(
            f"llama.cpp: a step at the context minus one at the smallest context, by layer, of {llama_cpp.LAYERS} layers with "
            "random weights; its cache is filled by repeating the state of 512 tokens"
        )
    else:
        notes.append("llama.cpp was not measured: pip install llama-cpp-python, or give --llama-python")
    return notes
