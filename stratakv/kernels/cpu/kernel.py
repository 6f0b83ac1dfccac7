"""A compiled kernel: encoding straight into pages, and attention over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.converting import convert
from stratakv.kernels.cpu import masked
from stratakv.kernels.cpu.layout import MAX_HEAD_DIM, compiled, encodes, knows
from stratakv.kernels.cpu.split import Split
from stratakv.kernels.kernel import Attended, Options, Part, attend_apart
from stratakv.kernels.native import native
from stratakv.kernels.step import Step
from stratakv.kernels.torch_kernel import Torch
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool


@dataclass(frozen=True)
class CpuKernel:
    """The C++ of one instruction set. name: avx512, avx2, neon or portable. precise: products of single tokens in float32 too,
    instead of integers (slower, error below 1e-3)."""

    name: str
    precise: bool = False

    def refuses(self, layout: PageLayout, device: torch.device) -> str | None:
        """See Kernel."""
        if device.type != "cpu":
            return f"{self.name} reads no pages on {device.type}"
        if layout.name != (read := f"tile{self._module.page_tokens()}-v1"):
            return f"{self.name} reads pages of {read}, not of {layout.name}"
        if max(layout.k_dim, layout.v_dim) > MAX_HEAD_DIM:
            return f"no compiled kernel for a head_dim above {MAX_HEAD_DIM}"
        unknown = dict.fromkeys(type_.name for type_ in (layout.k, layout.v) if not knows(type_))
        return f"no compiled kernel for {' and '.join(unknown)}" if unknown else None

    def append(
        self, pool: Pool, key: torch.Tensor, value: torch.Tensor, slots: NDArray[np.int64], status: torch.Tensor
    ) -> None:
        """See Kernel."""
        if not self.encodes(pool):
            Torch().append(pool, key, value, slots, status)
            return
        side, code = self._module.append(
            self.name,
            compiled(pool),
            pool.base,
            pool.stride,
            _contiguous_vectors(key),
            _contiguous_vectors(value),
            slots,
            torch.get_num_threads(),
        )
        if side >= 0:
            status[side] = code

    @staticmethod
    def encodes(pool: Pool) -> bool:
        """Whether the compiled code writes the pool's types; otherwise they do it themselves, in torch."""
        return pool.once(encodes, lambda: encodes(pool.layout))

    def attend(self, query: torch.Tensor, pool: Pool, step: Step, options: Options, *, lse: bool = False) -> Attended:
        """See Kernel."""
        if step.mask is not None:
            return self._attend_under_mask(query, pool, step, options, lse)
        return self._attend(query, (pool,), Split.of(step), options, lse)

    def attend_both(self, query: torch.Tensor, written: Part, other: Part, options: Options) -> torch.Tensor:
        """See Kernel: in one compiled call, but for masks with holes."""
        if written.step.mask is not None or other.step.mask is not None:
            return attend_apart(query, ((self, written), (self, other)), options).out
        return self._attend(query, (written.pool, other.pool), Split.of(written.step, other.step), options, False).out

    def convert(self, source: Pool, target: Pool, pairs: Sequence[tuple[int, int]], status: torch.Tensor) -> None:
        """See Kernel."""
        if not pairs:
            return
        if not self.encodes(target) or self.refuses(source.layout, source.device):
            convert(self, source, target, pairs, status)
        else:
            ends = compiled(source), source.base, source.stride, compiled(target), target.base, target.stride
            numbers = np.array(pairs, dtype=np.int64)
            side, code = self._module.convert(self.name, *ends, numbers, torch.get_num_threads())
            if side >= 0:
                status[side] = code

    @property
    def _module(self) -> Any:
        return native()

    def _attend(
        self, query: torch.Tensor, pools: tuple[Pool, ...], split: Split, options: Options, lse: bool
    ) -> Attended:
        """The pages of each pool hold another part of the history."""
        if split.decoding == len(split):
            return self._read(query, pools, split.steps, options, lse, self.precise)
        if split.decoding == 0:
            return self._read(query, pools, split.steps, options, lse, True)
        out = torch.empty(*query.shape[:2], pools[0].layout.v_dim, dtype=query.dtype)
        sums = torch.empty(query.shape[:2]) if lse else None

        for part, precise in ((split.others, self.precise), (split.chunks, True)):
            rows = torch.from_numpy(part.tokens)
            found = self._read(query[rows], pools, part.steps, options, lse, precise)
            out[rows] = found.out
            if sums is not None and found.lse is not None:
                sums[rows] = found.lse
        return Attended(out, sums)

    def _read(
        self,
        query: torch.Tensor,
        pools: tuple[Pool, ...],
        steps: tuple[Step, ...],
        options: Options,
        lse: bool,
        precise: bool,
    ) -> Attended:
        """In one compiled call."""
        out = torch.empty(*query.shape[:2], pools[0].layout.v_dim, dtype=query.dtype)
        sums = torch.empty(query.shape[:2]) if lse else None
        self._module.attend(
            self.name,
            [
                (compiled(pool), pool.base, pool.stride, step.pages, step.page_start, step.first, step.last)
                for pool, step in zip(pools, steps, strict=True)
            ],
            query if query.stride(-1) == 1 else query.contiguous(),
            out,
            sums,
            steps[0].query_start,
            None if options.sinks is None else options.sinks.detach().float().contiguous(),
            options.scale,
            options.softcap or 0.0,
            precise,
            torch.get_num_threads(),
        )
        return Attended(out, sums)

    def _attend_under_mask(self, query: torch.Tensor, pool: Pool, step: Step, options: Options, lse: bool) -> Attended:
        assert step.rectangle is not None and step.mask is not None
        layout, queries = pool.layout, query.unflatten(0, (len(step), -1)).transpose(1, 2)
        # one layout in memory, whatever else the step holds: products are rounded by it
        q = layout.k.rotate(queries.float().contiguous())
        q = q.to(torch.bfloat16) if query.dtype == torch.bfloat16 else q
        out, sums = masked.attend(q, pool, step.rectangle, step.mask, options, self.name)
        out = layout.v.unrotate(out).transpose(1, 2).flatten(0, 1).to(query.dtype).contiguous()
        return Attended(out, sums.transpose(1, 2).flatten(0, 1) if lse else None)


def _contiguous_vectors(states: torch.Tensor) -> torch.Tensor:
    states = states.detach()
    return states if states.stride(-1) == 1 else states.contiguous()
