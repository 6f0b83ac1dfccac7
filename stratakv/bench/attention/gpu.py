"""Decode attention, prefill and encoding on a GPU, beside torch's SDPA over dense bf16 and other projects' decode kernels:
medians of CUDA events."""

from __future__ import annotations

import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from stratakv.bench.attention.caches import Pair, Shape, pair_name
from stratakv.bench.attention.goals import SDPA, gpu_goals
from stratakv.bench.goals import goal_in_words
from stratakv.bench.peers.gpu_attention import GPU_PEERS, Decode, GpuPeer
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

SCHEMA = "stratakv/bench-attention-gpu/2"
_SDPA_KERNELS = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
Timer = Callable[[Callable[[int], object], float], list[float]]
"""(what to run, given its turn; seconds to spend) -> seconds of each run."""


@dataclass(frozen=True)
class GpuSettings:
    """What to measure. batches: sequences; contexts: tokens of each; groups: query heads a kv head; parts: of decode, prefill,
    encode; prefill: (tokens, queries at their end); seconds: for each row; rotate_bytes: caches of a row together, so that none
    stays in the card's own cache."""

    pairs: tuple[Pair, ...]
    shape: Shape = field(default_factory=Shape)
    batches: tuple[int, ...] = (1, 8, 64)
    contexts: tuple[int, ...] = (8192, 32768, 131072)
    groups: tuple[int, ...] = (4,)
    parts: tuple[str, ...] = ("decode", "prefill", "encode")
    prefill: tuple[tuple[int, int], ...] = ((32768, 32768),)
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
    """By CUDA events around each run, after five that warm up; 10 to 1,000 runs. Ten are launched one after another, so that the
    GPU waits for the host as little as may be."""
    for turn in range(5):
        run(turn)
    torch.cuda.synchronize()
    began, found = time.perf_counter(), list[float]()
    while not found or (time.perf_counter() - began < seconds and len(found) < 1000):
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(10)]
        for turn, (start, end) in enumerate(events, len(found)):
            start.record()
            run(turn)
            end.record()
        torch.cuda.synchronize()
        found += [start.elapsed_time(end) / 1e3 for start, end in events]
    return found


def bench_gpu(
    settings: GpuSettings,
    device: torch.device,
    timer: Timer = event_times,
    *,
    peers: Sequence[GpuPeer] = GPU_PEERS,
    command: str = "",
    report: Report = quiet,
) -> dict[str, Any]:
    """Measure; returns the data of `--json`, schema "stratakv/bench-attention-gpu/2". What doesn't fit in memory is left out,
    and said, and so are peers that aren't installed."""
    load, left_out = load_average(), list[str]()
    bandwidth = _copy_bandwidth(device, timer, settings)
    why = {peer.name: peer.missing() for peer in peers if "decode" in settings.parts}
    left_out += [f"decode, {name}: {words}" for name, words in why.items() if words]
    here = _Bench(settings, device, timer, bandwidth, tuple(peer for peer in peers if why.get(peer.name, "") is None))

    def rows(part: str, cases: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> list[dict[str, Any]]:
        found = []
        for what, measure in cases if part in settings.parts else ():
            report(f"{part}, {what}")
            try:
                found.append(measure())
            except torch.cuda.OutOfMemoryError:
                left_out.append(f"{part}, {what}: not enough memory")
            except PeerError as error:
                left_out.append(f"{part}, {what}: {error}")
        return found

    measured: dict[str, Any] = {
        "device": str(device),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "none: a CPU",
        "power": _power(device) if device.type == "cuda" else None,
        "copy_bandwidth_gb_s": bandwidth,
        "rows": rows("decode", here.decoding()),
        "prefill": rows("prefill", here.prompts()),
        "encode": rows("encode", here.encoding()),
        "left_out": left_out,
    }
    notes = ["medians of CUDA events; random states; ours includes rotating the query and un-rotating the output"]
    measured["goals"] = gpu_goals(measured["rows"], measured["prefill"], measured["encode"])
    return result(SCHEMA, measured, command=command, load=load, notes=notes)


def format_gpu(data: dict[str, Any]) -> str:
    """As text: a line a row."""
    lines = [f"{data['card']}, copies {data['copy_bandwidth_gb_s']:.0f} GB/s, {data['power']}"]
    lines += [
        f"{row['name']:>20}  {row['kernel']:<15}  batch {row['batch']:>3}  {row['context']:>7,} tokens  "
        f"{row['q_heads'] // row['kv_heads']} query heads a kv head  {row['ms']:9.3f} ms  {row['gb_s']:7.0f} GB/s  "
        f"{row['share_of_copy_bandwidth']:6.1%}"
        for row in data["rows"]
    ]
    lines += [
        f"{row['name']:>20}  {row['kernel']:<15}  {row['queries']:,} queries over {row['context']:,} tokens  "
        f"{row['q_heads'] // row['kv_heads']} query heads a kv head  {row['ms']:9.3f} ms  "
        f"(SDPA bf16, {row['sdpa_kernel']}, {row['sdpa_ms']:.3f} ms)"
        for row in data["prefill"]
    ]
    lines += [
        f"{row['name']:>20}  {row['kernel']:<15}  encode {row['tokens']:,} tokens  {row['ms']:9.3f} ms  {row['gb_s']:7.0f} GB/s  "
        f"{row['share_of_copy_bandwidth']:6.1%}"
        for row in data["encode"]
    ]
    lines += [f"left out: {each}" for each in data["left_out"]]
    return "\n".join(lines + [goal_in_words(each) for each in data["goals"]])


class PeerError(Exception):
    """Another project's kernel failed, in its words."""


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


@dataclass(frozen=True)
class _Bench:
    """The cases of each part: what is measured, in words, and the measuring of its row."""

    settings: GpuSettings
    device: torch.device
    timer: Timer
    bandwidth: float
    peers: tuple[GpuPeer, ...]

    def decoding(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """A token of each sequence over its context; then torch's own attention, and other projects'."""
        settings = self.settings
        for context, batch, groups in product(settings.contexts, settings.batches, settings.groups):
            for pair in (*settings.pairs, None):
                what = f"{_name(pair)}, {batch} sequences of {context} tokens, {groups} query heads a kv head"
                yield what, partial(self._decode, pair, batch, context, groups)
            for peer in self.peers:
                what = f"{peer.name}, {batch} sequences of {context} tokens, {groups} query heads a kv head"
                yield what, partial(self._decode_there, peer, batch, context, groups)

    def prompts(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """The last tokens of one sequence, causal."""
        settings = self.settings
        for (context, queries), groups, pair in product(settings.prefill, settings.groups, settings.pairs):
            what = f"{_name(pair)}, {queries} queries over {context} tokens, {groups} query heads a kv head"
            yield what, partial(self._prefill, pair, context, queries, groups)

    def encoding(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """As many tokens as the longest prompt has."""
        tokens = max(queries for _, queries in self.settings.prefill)
        for pair in self.settings.pairs:
            yield f"{_name(pair)}, {tokens} tokens", partial(self._encode, pair, tokens)

    def _decode(self, pair: Pair | None, batch: int, context: int, groups: int) -> dict[str, Any]:
        shape, settings = self.settings.shape, self.settings
        query = random_states(self.device, batch, shape, shape.kv_heads * groups)
        nbytes = batch * shape.packed_bytes(pair or ("bf16", "bf16"), context)
        count = max(1, -(-settings.rotate_bytes // nbytes))
        if pair is None:
            size = batch, shape.kv_heads, context, shape.head_dim
            dense = [torch.randn(2, *size, device=self.device, dtype=torch.bfloat16) for _ in range(count)]

            def run(turn: int) -> object:
                k, v = dense[turn % count]
                return F.scaled_dot_product_attention(query.unsqueeze(2), k, v, enable_gqa=groups > 1)

            seconds, kernel = self._sdpa(run)
        else:
            packed = [_Packed(shape, pair, batch, context, self.device) for _ in range(count)]
            steps = [each.step(context, 1) for each in packed]

            def run(turn: int) -> object:
                here = packed[turn % count]
                return here.kernel.attend(query, here.pool, steps[turn % count], Options(shape.head_dim**-0.5))

            seconds, kernel = self._seconds(run), packed[0].kernel.name
        row = {**self._row(pair, kernel), "batch": batch, "context": context, "q_heads": shape.kv_heads * groups}
        return {**row, **self._rate(seconds, nbytes)}

    def _decode_there(self, peer: GpuPeer, batch: int, context: int, groups: int) -> dict[str, Any]:
        shape, settings = self.settings.shape, self.settings
        q_heads = shape.kv_heads * groups
        query = random_states(self.device, batch, shape, q_heads)
        case = Decode(batch, context, q_heads, self._states(min(context, 4096)))
        try:
            nbytes = peer.nbytes(case)
            runs = [peer.prepare(case) for _ in range(max(1, -(-settings.rotate_bytes // nbytes)))]
            moved = self._moved(lambda turn: runs[turn % len(runs)](query), nbytes)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # theirs may be anything; the other rows stay
            raise PeerError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        row = {"name": peer.name, "kernel": peer.kernel, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
        return {**row, "batch": batch, "context": context, "q_heads": q_heads, **moved}

    def _prefill(self, pair: Pair, context: int, queries: int, groups: int) -> dict[str, Any]:
        shape = self.settings.shape
        packed = _Packed(shape, pair, 1, context, self.device)
        query = random_states(self.device, queries, shape, shape.kv_heads * groups)
        step, options = packed.step(context, queries), Options(shape.head_dim**-0.5)
        row = {**self._row(pair, packed.kernel.name), "context": context, "queries": queries}
        ours = self._seconds(lambda turn: packed.kernel.attend(query, packed.pool, step, options))
        q, k = (x.transpose(0, 1)[None] for x in (query, self._states(context)))
        mask = causal_lower_right(queries, context)
        sdpa, kernel = self._sdpa(
            lambda turn: F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=groups > 1)
        )
        row |= {"q_heads": shape.kv_heads * groups, "ms": 1e3 * ours, "sdpa_ms": 1e3 * sdpa}
        return {**row, "sdpa_kernel": kernel}

    def _encode(self, pair: Pair, tokens: int) -> dict[str, Any]:
        """By the bytes that are read and written."""
        packed, states = _Packed(self.settings.shape, pair, 1, tokens, self.device), self._states(tokens)
        slots, status = packed.step(tokens, tokens).slots, new_codes(device=self.device)
        moved = 2 * states.numel() * states.element_size() + self.settings.shape.packed_bytes(pair, tokens)
        times = self._moved(lambda turn: packed.kernel.append(packed.pool, states, states, slots, status), moved)
        return {**self._row(pair, packed.kernel.name), "tokens": tokens, **times}

    def _states(self, tokens: int) -> torch.Tensor:
        return random_states(self.device, tokens, self.settings.shape)

    def _row(self, pair: Pair | None, kernel: str) -> dict[str, Any]:
        shape = self.settings.shape
        return {"name": _name(pair), "kernel": kernel, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}

    def _seconds(self, run: Callable[[int], object]) -> float:
        return median(self.timer(run, self.settings.seconds))

    def _sdpa(self, run: Callable[[int], object]) -> tuple[float, str]:
        """torch's attention by each of its kernels that takes these tensors: the fastest one's seconds, and its name."""
        found = list[tuple[float, str]]()
        for kernel in _SDPA_KERNELS:
            with sdpa_kernel(kernel):
                try:
                    with warnings.catch_warnings(action="ignore"):  # a line for each reason why it doesn't
                        run(0)
                except RuntimeError:  # too little memory among them
                    continue
                found.append((self._seconds(run), f"torch {kernel.name.split('_')[0].lower()}"))
        return min(found, default=None) or (self._seconds(run), "torch")

    def _moved(self, run: Callable[[int], object], nbytes: int) -> dict[str, float]:
        return self._rate(self._seconds(run), nbytes)

    def _rate(self, seconds: float, nbytes: int) -> dict[str, float]:
        rate = nbytes / seconds / 1e9
        return {"ms": 1e3 * seconds, "gb_s": rate, "share_of_copy_bandwidth": rate / self.bandwidth}


def _name(pair: Pair | None) -> str:
    return SDPA if pair is None else pair_name(pair)


def _copy_bandwidth(device: torch.device, timer: Timer, settings: GpuSettings) -> float:
    """GB/s, bytes read and written, of copies that don't fit in the card's cache."""
    source = torch.empty(settings.rotate_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median(timer(lambda turn: target.copy_(source), settings.seconds)) / 1e9


def _power(device: torch.device) -> str:
    """This card's power state as the driver says it."""
    query = "pstate,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    card = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        done = subprocess.run(
            ["nvidia-smi", card, f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return "power state unknown: no nvidia-smi"
    return done.stdout.strip() or "power state unknown"
