"""Decode attention, prefill and encoding on a GPU, beside torch's SDPA over dense bf16: medians of CUDA events."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stratakv.bench.attention.caches import Pair, Shape, pair_name
from stratakv.bench.result import Report, quiet, result
from stratakv.bench.timing import load_average
from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_for, order_of
from stratakv.kernels.kernel import Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool

SCHEMA = "stratakv/bench-attention-gpu/1"
Timer = Callable[[Callable[[int], object], float], list[float]]
"""(what to run, given its turn; seconds to spend) -> seconds of each run."""


@dataclass(frozen=True)
class GpuSettings:
    """What to measure. batches: sequences; contexts: tokens of each; groups: query heads a kv head; prefill: tokens of a prompt,
    0: none; seconds: for each row; rotate_bytes: caches of a row together, so that none stays in the card's own cache."""

    pairs: tuple[Pair, ...]
    shape: Shape = field(default_factory=Shape)
    batches: tuple[int, ...] = (1, 8, 64)
    contexts: tuple[int, ...] = (8192, 32768, 131072)
    groups: int = 4
    prefill: int = 32768
    seconds: float = 1.0
    rotate_bytes: int = 2**28


def gpu(name: str) -> torch.device:
    """The GPU of that name. UserError where there is none."""
    device = torch.device(name)
    if device.type != "cuda" or not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch {torch.__version__} finds no such NVIDIA GPU here; leave it out to measure the CPU"
        )
    return device


def event_times(run: Callable[[int], object], seconds: float) -> list[float]:
    """By CUDA events around each run, after five that warm up; 10 to 1,000 runs."""
    for turn in range(5):
        run(turn)
    torch.cuda.synchronize()
    began, found = time.perf_counter(), list[float]()
    while len(found) < 10 or (time.perf_counter() - began < seconds and len(found) < 1000):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(len(found))
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return found


def bench_gpu(
    settings: GpuSettings,
    device: torch.device,
    timer: Timer = event_times,
    *,
    command: str = "",
    report: Report = quiet,
) -> dict[str, Any]:
    """Measure; returns the data of `--json`, schema "stratakv/bench-attention-gpu/1"."""
    load, rows, left_out = load_average(), list[dict[str, Any]](), list[str]()
    bandwidth = _copy_bandwidth(device, timer, settings)
    for context in settings.contexts:
        for batch in settings.batches:
            for pair in (*settings.pairs, None):
                name = "torch SDPA bf16" if pair is None else pair_name(pair)
                report(f"decode, {batch} sequences of {context} tokens, {name}")
                try:
                    rows.append(_decode(settings, device, timer, pair, batch, context, bandwidth))
                except torch.cuda.OutOfMemoryError:
                    left_out.append(f"{name}, {batch} sequences of {context} tokens: not enough memory")
    other = []
    for pair in settings.pairs:
        report(f"prefill and encode, {pair_name(pair)}")
        other.append(_prefill_and_encode(settings, device, timer, pair, bandwidth))
    measured = {
        "device": str(device),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "none: a CPU",
        "power": _power() if device.type == "cuda" else None,
        "copy_bandwidth_gb_s": bandwidth,
        "rows": rows,
        "prefill": other,
        "left_out": left_out,
    }
    notes = ["medians of CUDA events; random states; ours includes rotating the query and un-rotating the output"]
    return result(SCHEMA, measured, command=command, load=load, notes=notes)


def format_gpu(data: dict[str, Any]) -> str:
    """As text: a line a row."""
    lines = [f"{data['card']}, copies {data['copy_bandwidth_gb_s']:.0f} GB/s, {data['power']}"]
    lines += [
        f"{row['name']:>20}  {row['kernel']:<6}  batch {row['batch']:>3}  {row['context']:>7,} tokens  {row['ms']:9.3f} ms  "
        f"{row['gb_s']:7.0f} GB/s  {row['share_of_copy_bandwidth']:6.1%}"
        for row in data["rows"]
    ]
    lines += [
        f"{row['name']:>20}  {row['kernel']:<6}  prefill of {row['tokens']:,}: {row['prefill_ms']:.3f} ms, "
        f"SDPA bf16 {row['sdpa_ms']:.3f} ms; encode {row['encode_gb_s']:.0f} GB/s"
        for row in data["prefill"]
    ]
    return "\n".join(lines + [f"left out: {each}" for each in data["left_out"]])


class _Packed:
    """Sequences of random states in a pool; all pages hold the same few states, written by the kernel itself."""

    def __init__(self, shape: Shape, pair: Pair, batch: int, context: int, device: torch.device) -> None:
        k, v = (kv_type(name) for name in pair)
        dim = shape.head_dim
        layout = PageLayout(k, v, dim, dim, shape.kv_heads, order=order_of(device))
        count = -(-context // PAGE_TOKENS)
        self.pool, self.kernel = Pool.fixed(layout, batch * count, device), kernel_for(layout, device)
        states = random_states(device, min(context, 4096), shape)
        slots = np.arange(len(states), dtype=np.int64)
        self.kernel.append(self.pool, states, states, slots, new_codes(device=device))
        drawn = -(-len(states) // PAGE_TOKENS)
        for page in range(drawn, batch * count):
            self.pool.copy(page % drawn, page)
        self.tables = np.arange(batch * count, dtype=np.int64).reshape(batch, count)

    def step(self, context: int, queries: int) -> Step:
        return Step.even(self.tables, context, queries)


def random_states(device: torch.device, tokens: int, shape: Shape, heads: int = 0) -> torch.Tensor:
    """bf16 [tokens, heads or kv_heads, head_dim], standard normal."""
    generator = torch.Generator(device=device).manual_seed(0)
    size = tokens, heads or shape.kv_heads, shape.head_dim
    return torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)


def _decode(
    settings: GpuSettings,
    device: torch.device,
    timer: Timer,
    pair: Pair | None,
    batch: int,
    context: int,
    bandwidth: float,
) -> dict[str, Any]:
    shape = settings.shape
    heads = shape.kv_heads * settings.groups
    query = random_states(device, batch, shape, heads)
    nbytes = batch * shape.packed_bytes(pair or ("bf16", "bf16"), context)
    count = max(1, -(-settings.rotate_bytes // nbytes))
    if pair is None:
        size = batch, shape.kv_heads, context, shape.head_dim
        dense = [torch.randn(2, *size, device=device, dtype=torch.bfloat16) for _ in range(count)]

        def run(turn: int) -> object:
            k, v = dense[turn % count]
            return F.scaled_dot_product_attention(query.unsqueeze(2), k, v, enable_gqa=settings.groups > 1)
    else:
        packed = [_Packed(shape, pair, batch, context, device) for _ in range(count)]
        steps = [each.step(context, 1) for each in packed]

        def run(turn: int) -> object:
            here = packed[turn % count]
            return here.kernel.attend(query, here.pool, steps[turn % count], Options(shape.head_dim**-0.5))

    seconds = median(timer(run, settings.seconds))
    return {
        "name": "torch SDPA bf16" if pair is None else pair_name(pair),
        "kernel": "torch" if pair is None else packed[0].kernel.name,
        "batch": batch,
        "context": context,
        "q_heads": heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "ms": 1e3 * seconds,
        "gb_s": nbytes / seconds / 1e9,
        "share_of_copy_bandwidth": nbytes / seconds / 1e9 / bandwidth,
    }


def _prefill_and_encode(
    settings: GpuSettings, device: torch.device, timer: Timer, pair: Pair, bandwidth: float
) -> dict[str, Any]:
    """A whole prompt, causal; and encoding of it, by the bytes that are read and written."""
    shape, tokens = settings.shape, settings.prefill
    packed = _Packed(shape, pair, 1, tokens, device)
    query, states = (
        random_states(device, tokens, shape, shape.kv_heads * settings.groups),
        random_states(device, tokens, shape),
    )
    step, options, status = packed.step(tokens, tokens), Options(shape.head_dim**-0.5), new_codes(device=device)
    ours = timer(lambda turn: packed.kernel.attend(query, packed.pool, step, options), settings.seconds)
    q, k = (x.transpose(0, 1)[None] for x in (query, states))
    gqa = settings.groups > 1
    sdpa = timer(lambda turn: F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=gqa), settings.seconds)
    encode = timer(lambda turn: packed.kernel.append(packed.pool, states, states, step.slots, status), settings.seconds)
    moved = 2 * states.numel() * states.element_size() + shape.packed_bytes(pair, tokens)
    return {
        "name": pair_name(pair),
        "kernel": packed.kernel.name,
        "tokens": tokens,
        "prefill_ms": 1e3 * median(ours),
        "sdpa_ms": 1e3 * median(sdpa),
        "encode_ms": 1e3 * median(encode),
        "encode_gb_s": moved / median(encode) / 1e9,
        "encode_share_of_copy_bandwidth": moved / median(encode) / 1e9 / bandwidth,
    }


def _copy_bandwidth(device: torch.device, timer: Timer, settings: GpuSettings) -> float:
    """GB/s, bytes read and written, of copies that don't fit in the card's cache."""
    source = torch.empty(settings.rotate_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median(timer(lambda turn: target.copy_(source), settings.seconds)) / 1e9


def _power() -> str:
    """The power state as the driver says it."""
    query = "pstate,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return "power state unknown: no nvidia-smi"
    return done.stdout.strip() or "power state unknown"
