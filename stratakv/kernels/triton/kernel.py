"""The Triton kernels as a kernel object."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
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
from stratakv.kernels.triton.appending import on, sent_slots, write
from stratakv.kernels.triton.encoder import encoder_of
from stratakv.kernels.triton.shape import MAX_HEAD_DIM, Shape, shape_of
from stratakv.kernels.triton.side import Name, Side, refusal, side_of
from stratakv.kvtypes.hadamard import Rotation
from stratakv.pages.layout import Order, PageLayout
from stratakv.pages.pool import Pool
from stratakv.pages.sending import sent

SIDES: tuple[Name, Name] = ("k", "v")
_LOG2E = log2(2.718281828459045)
# Major compute capabilities whose code is compiled in the tests: Ampere and Ada, Hopper, Blackwell twice
_CAPABILITIES = (8, 9, 10, 12)
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
        if layout.order != self.order:
            return f"{self.name} reads pages in order {self.order!r}, not {layout.name}"
        if max(layout.k_dim, layout.v_dim) > MAX_HEAD_DIM:
            return f"no Triton kernel for a head_dim above {MAX_HEAD_DIM}"
        return refusal(layout.k, layout.k_dim) or refusal(layout.v, layout.v_dim)

    def append(
        self, pool: Pool, key: torch.Tensor, value: torch.Tensor, slots: NDArray[np.int64], status: torch.Tensor
    ) -> None:
        """See Kernel. Types whose rule the kernel doesn't know are encoded by the types themselves, on the device."""
        encoders = [encoder_of(pool.layout, name) for name in SIDES]
        if None in encoders:
            Torch().append(pool, key, value, slots, status)
        elif len(slots):
            there = sent_slots(slots, pool.device)
            for index, (name, states) in enumerate(zip(SIDES, (key, value), strict=True)):
                write(pool, name, states, there, status[index:])

    def attend(self, query: torch.Tensor, pool: Pool, step: Step, options: Options, *, lse: bool = False) -> Attended:
        """See Kernel. Masks with holes are for Torch."""
        if step.mask is not None:
            return Torch().attend(query, pool, step, options, lse=lse)
        return _attended(query, (Part(pool, step),), options, lse)

    def attend_both(self, query: torch.Tensor, written: Part, other: Part, options: Options) -> torch.Tensor:
        """See Kernel. In one merge where both kinds of pages store V in the same basis, as turbo and trellis types do."""
        bases = [part.pool.layout.v.rotation(part.pool.layout.v_dim) for part in (written, other)]
        if bases[0] != bases[1] or written.step.mask is not None or other.step.mask is not None:
            return attend_apart(query, ((self, written), (self, other)), options).out
        return _attended(query, (written, other), options, lse=False).out

    def convert(self, source: Pool, target: Pool, pairs: Sequence[tuple[int, int]], status: torch.Tensor) -> None:
        """See Kernel."""
        convert(self, source, target, pairs, status)


def _attended(query: torch.Tensor, parts: Sequence[Part], options: Options, lse: bool) -> Attended:
    """Over pages of one kind or several, V in one basis."""
    layout, device = parts[0].pool.layout, parts[0].pool.device
    tokens, q_heads = query.shape[:2]
    out = torch.empty(tokens, q_heads, layout.v_dim, dtype=torch.float32, device=device)
    total = torch.empty(tokens, q_heads, dtype=torch.float32, device=device) if lse else None
    if tokens:
        launches = [_launch(part, q_heads // layout.kv_heads) for part in parts]
        splits = sum(launch.splits for launch in launches)
        found = torch.empty(splits, tokens, q_heads, layout.v_dim, dtype=torch.float32, device=device)
        sums = torch.empty(splits, tokens, q_heads, dtype=torch.float32, device=device)
        bases: dict[Rotation | None, torch.Tensor] = {}  # the query in each
        begin = 0
        with on(device):
            for launch in launches:
                k = launch.pool.layout.k
                basis = k.rotation(layout.k_dim)
                if basis not in bases:
                    bases[basis] = k.rotate(query)
                end = begin + launch.splits
                _attend(bases[basis], launch, options, found[begin:end], sums[begin:end])
                begin = end
            _merge(found, sums, options.sinks, out, total)
    return Attended(layout.v.unrotate(out).to(query.dtype).contiguous(), total)


@dataclass(frozen=True)
class _Launch:
    """How the history of one kind of pages is taken: see attention.attend."""

    pool: Pool
    shape: Shape
    sent: _Sent
    splits: int


def _launch(part: Part, groups: int) -> _Launch:
    (pool, step), layout, device = part, part.pool.layout, part.pool.device
    shape = shape_of(layout, groups, _most_queries(step))
    key = "triton", device, shape.queries, layout.page_tokens
    sent = step.once(key, lambda: _sent(step, layout, shape.queries, device))
    return _Launch(pool, shape, sent, _splits(len(sent.blocks) * layout.kv_heads, sent.longest, shape, device))


def _attend(q: torch.Tensor, launch: _Launch, options: Options, parts: torch.Tensor, sums: torch.Tensor) -> None:
    """Outputs and sums of each split of the history, into parts and sums. q: in K's stored basis."""
    from stratakv.kernels.triton import attention

    pool, shape, sent, splits = launch.pool, launch.shape, launch.sent, launch.splits
    layout = pool.layout
    q = q if q.stride(-1) == 1 else q.contiguous()
    k, v = (pool.once(("triton", name), partial(_resident, side_of(layout, name), pool.device)) for name in SIDES)
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
        len(q),
        splits,
        options.scale * _LOG2E,
        options.softcap or 1.0,
        **shape.constants(k.side, v.side, layout, options.softcap is not None),
        num_warps=shape.warps,
        num_stages=shape.stages,
        maxnreg=shape.registers,
        enable_fp_fusion=True,
    )


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
    if capability[0] not in _CAPABILITIES:
        given, known = ".".join(map(str, capability)), ", ".join(f"{major}.x" for major in _CAPABILITIES)
        return f"the Triton kernels know the compute capabilities {known}; this GPU has {given}"
    return _without_launcher()


@lru_cache(maxsize=1)
def _without_launcher() -> str | None:
    """Why Triton can't launch a kernel here: it compiles what launches them when that is first needed."""
    import triton

    try:
        _ = triton.runtime.driver.active.utils
    except subprocess.CalledProcessError as error:
        why = f"{error.cmd[0]} failed"
    except Exception as error:  # no compiler, or no library of the driver: each an error of its own
        why = (str(error) or type(error).__name__).splitlines()[0]
    else:
        return None
    return f"Triton can't compile its launcher, which takes a C compiler and Python's headers (python3-dev): {why}"


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
        return sent(numbers.astype(np.int32), device)

    longest = int((step.last - step.first).max(initial=0))
    return _Sent(there(step.pages), there(blocks), there(step.first), there(step.last), longest)


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
