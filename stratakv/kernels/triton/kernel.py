"""The Triton kernels as a kernel object."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from math import log2
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.converting import convert
from stratakv.kernels.kernel import Attended, Options, Part, attend_apart
from stratakv.kernels.step import Step
from stratakv.kernels.torch_kernel import Torch
from stratakv.kernels.triton.encoder import encoder_of, numbers_of
from stratakv.kernels.triton.shape import LAYOUT, MAX_HEAD_DIM, Shape, shape_of
from stratakv.kernels.triton.side import Name, Side, refusal, side_of
from stratakv.pages.layout import Order, PageLayout
from stratakv.pages.pool import Pool

SIDES: tuple[Name, Name] = ("k", "v")
_LOG2E = log2(2.718281828459045)
# Compute capabilities whose code is compiled in the tests: Ampere, Ada, Hopper, Blackwell
_LEAST_CAPABILITY = (8, 0)
_MOST_SPLITS = 64


def interpreted() -> bool:
    """Whether Triton interprets its kernels on a CPU: TRITON_INTERPRET=1, for tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None


@dataclass(frozen=True)
class Triton:
    """Attention over pages in rows, and encoding into them, on NVIDIA GPUs. Products are of f16 with sums in float32, of floats
    as Torch's types have them in tf32 or better."""

    name: str = "triton"
    device: str = "cuda"
    remark: str = "not measured on a GPU"
    order: Order = "rows"

    def missing(self) -> str | None:
        """See DeviceKernel."""
        return None if _installed() else "Triton isn't installed: pip install 'stratakv[gpu]'"

    def here(self) -> str | None:
        """See DeviceKernel."""
        return torch.cuda.get_device_name(torch.device("cuda")) if torch.cuda.is_available() else None

    def refuses(self, layout: PageLayout, device: torch.device) -> str | None:
        """See Kernel."""
        return self.missing() or _refused_device(device) or self._lacks(layout)

    def _lacks(self, layout: PageLayout) -> str | None:
        """On any device."""
        if why := self.missing():
            return why
        if layout.name != LAYOUT:
            return f"{self.name} reads pages of {LAYOUT}, not of {layout.name}"
        if max(layout.k_dim, layout.v_dim) > MAX_HEAD_DIM:
            return f"no Triton kernel for a head_dim above {MAX_HEAD_DIM}"
        return refusal(layout.k, layout.k_dim) or refusal(layout.v, layout.v_dim)

    def append(
        self, pool: Pool, key: torch.Tensor, value: torch.Tensor, slots: NDArray[np.int64], status: torch.Tensor
    ) -> None:
        """See Kernel. Types whose rule the kernel doesn't know, and blocks that are no power of two, are encoded by the types
        themselves, on the device."""
        layout = pool.layout
        encoders = [encoder_of(layout, name) for name in SIDES]
        if None in encoders:
            Torch().append(pool, key, value, slots, status)
            return
        if not len(slots):
            return
        from stratakv.kernels.triton import encoding

        there = _sent_slots(slots, pool.device)
        for index, (name, states, encoder) in enumerate(zip(SIDES, (key, value), encoders, strict=True)):
            assert encoder is not None
            x = states.detach()
            x = x if x.stride(-1) == 1 else x.contiguous()
            numbers = pool.once(("triton encoder", name), partial(numbers_of, layout, name, pool.device))
            with _on(pool.device):
                encoding.append[(-(-len(x) // encoder.tokens), layout.kv_heads)](
                    x,
                    there,
                    pool.memory,
                    status[index:],
                    numbers.signs,
                    numbers.thresholds,
                    numbers.integers,
                    x.stride(0),
                    x.stride(1),
                    pool.stride,
                    len(x),
                    S=side_of(layout, name),
                    E=encoder,
                    TILE_BYTES=layout.tile_bytes,
                    num_warps=4,
                    enable_fp_fusion=False,
                )

    def attend(self, query: torch.Tensor, pool: Pool, step: Step, options: Options, *, lse: bool = False) -> Attended:
        """See Kernel. Masks with holes are for Torch."""
        if step.mask is not None:
            return Torch().attend(query, pool, step, options, lse=lse)
        layout = pool.layout
        tokens, q_heads = query.shape[:2]
        out = torch.empty(tokens, q_heads, layout.v_dim, dtype=torch.float32, device=pool.device)
        total = torch.empty(tokens, q_heads, dtype=torch.float32, device=pool.device) if lse else None
        if tokens:
            with _on(pool.device):
                _merge(*_parts(layout.k.rotate(query), pool, step, options), options.sinks, out, total)
        return Attended(layout.v.unrotate(out).to(query.dtype).contiguous(), total)

    def attend_both(self, query: torch.Tensor, written: Part, other: Part, options: Options) -> torch.Tensor:
        """See Kernel."""
        return attend_apart(query, ((self, written), (self, other)), options).out

    def convert(self, source: Pool, target: Pool, pairs: Sequence[tuple[int, int]], status: torch.Tensor) -> None:
        """See Kernel."""
        convert(self, source, target, pairs, status)


def _parts(q: torch.Tensor, pool: Pool, step: Step, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """(outputs, sums) of each split of the history, see attention.attend. q: in K's stored basis."""
    from stratakv.kernels.triton import attention

    layout, device = pool.layout, pool.device
    tokens, q_heads = q.shape[:2]
    q = q if q.stride(-1) == 1 else q.contiguous()
    shape = shape_of(layout, q_heads // layout.kv_heads, _most_queries(step))
    sent = step.once(("triton", device, shape.queries), lambda: _sent(step, layout, shape.queries, device))
    k, v = (pool.once(("triton", name), partial(_resident, side_of(layout, name), device)) for name in SIDES)
    splits = _splits(len(sent.blocks) * layout.kv_heads, sent.longest, shape, device)
    parts = torch.empty(splits, tokens, q_heads, layout.v_dim, dtype=torch.float32, device=device)
    sums = torch.empty(splits, tokens, q_heads, dtype=torch.float32, device=device)
    attention.attend[(len(sent.blocks), layout.kv_heads, splits)](
        q,
        parts,
        sums,
        pool.memory,
        k.table,
        v.table,
        sent.pages,
        sent.blocks,
        sent.first,
        sent.last,
        q.stride(0),
        q.stride(1),
        pool.stride,
        tokens,
        splits,
        options.scale * _LOG2E,
        options.softcap or 1.0,
        **shape.constants(k.side, v.side, layout, options.softcap is not None),
        num_warps=shape.warps,
        num_stages=shape.stages,
        enable_fp_fusion=True,
    )
    return parts, sums


def _merge(
    parts: torch.Tensor, sums: torch.Tensor, sinks: torch.Tensor | None, out: torch.Tensor, total: torch.Tensor | None
) -> None:
    """The splits added up into out, and into total where the log-sum-exp is wanted."""
    from stratakv.kernels.triton import attention

    splits, tokens, q_heads, dim = parts.shape
    attention.merge[(tokens * q_heads,)](
        parts,
        sums,
        sums if sinks is None else sinks.detach().float().contiguous(),
        out,
        sums if total is None else total,
        tokens * q_heads,
        q_heads,
        splits,
        DIM=dim,
        PADDED=max(16, 1 << (dim - 1).bit_length()),
        SINKS=sinks is not None,
        LSE=total is not None,
        num_warps=1,
        enable_fp_fusion=True,
    )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _refused_device(device: torch.device) -> str | None:
    if device.type == "cpu":
        return (
            None if interpreted() else "triton reads no pages on a CPU, except in its interpreter (TRITON_INTERPRET=1)"
        )
    if device.type != "cuda" or torch.version.hip is not None:
        return (
            f"the Triton kernels are compiled for NVIDIA GPUs, not for {(torch.version.hip and 'ROCm') or device.type}"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        least, given = (".".join(map(str, each)) for each in (_LEAST_CAPABILITY, capability))
        return f"the Triton kernels need compute capability {least}, this GPU has {given}"
    return None


@dataclass(frozen=True)
class _Sent:
    """A step on a device. pages, first, last: its arrays, int32. blocks: see attention.attend. longest: tokens that a block
    sees at most."""

    pages: torch.Tensor
    blocks: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    longest: int


def _most_queries(step: Step) -> int:
    return step.once("most queries", lambda: int(np.diff(step.query_start).max(initial=0)))


def _sent(step: Step, layout: PageLayout, queries: int, device: torch.device) -> _Sent:
    counts = np.diff(step.query_start)
    sequence = np.repeat(np.arange(len(step)), counts)
    held = np.diff(step.page_start)[sequence] * layout.page_tokens
    if (step.last > np.where(step.last > step.first, held, step.last)).any():
        raise ValueError("a query sees tokens that its block table doesn't hold")
    pieces = -(-counts // queries)
    owner = np.repeat(np.arange(len(step)), pieces)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = step.query_start[owner] + place * queries
    blocks = np.stack([step.page_start[owner], begins, step.query_start[owner + 1]], axis=1)

    def there(numbers: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int32)).to(device, non_blocking=True)

    longest = int((step.last - step.first).max(initial=0))
    return _Sent(there(step.pages), there(blocks), there(step.first), there(step.last), longest)


_last_slots: tuple[NDArray[np.int64], torch.Tensor] | None = None


def _sent_slots(slots: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """A step's slots on the device, sent once for all its layers, which give the same numbers one after another."""
    global _last_slots
    last = _last_slots
    if last is None or last[1].device != device or not np.array_equal(last[0], slots):
        own = np.array(slots, dtype=np.int64)
        _last_slots = last = own, torch.from_numpy(own).to(device, non_blocking=True)
    return last[1]


@dataclass(frozen=True)
class _Resident:
    side: Side
    table: torch.Tensor


def _resident(side: Side, device: torch.device) -> _Resident:
    return _Resident(side, torch.tensor(side.looked_up, dtype=torch.int32, device=device))


def _splits(programs: int, longest: int, shape: Shape, device: torch.device) -> int:
    """Parts of the history, so that programs fill the GPU twice over, each with 4 tiles or more."""
    cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    wanted = -(-cores * shape.resident // max(programs, 1))
    return max(1, min(wanted, -(-longest // (4 * shape.tile)), _MOST_SPLITS))
