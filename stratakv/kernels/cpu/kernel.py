"""A compiled kernel: encoding straight into pages, and attention over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.cpu import prefill
from stratakv.kernels.cpu.layout import MAX_HEAD_DIM, compiled, encodes, knows
from stratakv.kernels.cpu.split import Chunk, Split
from stratakv.kernels.kernel import Attended, Options
from stratakv.kernels.native import native
from stratakv.kernels.step import Rectangle, Step
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
        split = Split.of(step)
        if split.decoding == len(split.step):
            return self._read(query, pool, split.step, options, lse, self.precise)
        if split.decoding == 0:
            return self._read(query, pool, split.step, options, lse, True)
        out = torch.empty(*query.shape[:2], pool.layout.v_dim, dtype=query.dtype)
        sums = torch.empty(query.shape[:2]) if lse else None
        for part, precise in ((split.others, self.precise), (split.short_chunks, True)):
            if len(part.tokens):
                rows = torch.from_numpy(part.tokens)
                found = self._read(query[rows], pool, part.step, options, lse, precise)
                out[rows] = found.out
                if sums is not None and found.lse is not None:
                    sums[rows] = found.lse
        for chunk in split.chunks:
            found = self._attend_chunk(query[chunk.queries], pool, chunk, options)
            out[chunk.queries] = found.out
            if sums is not None and found.lse is not None:
                sums[chunk.queries] = found.lse
        return Attended(out, sums)

    @cached_property
    def _module(self) -> Any:
        return native()

    def _read(
        self, query: torch.Tensor, pool: Pool, step: Step, options: Options, lse: bool, precise: bool
    ) -> Attended:
        """In one compiled call."""
        out = torch.empty(*query.shape[:2], pool.layout.v_dim, dtype=query.dtype)
        sums = torch.empty(query.shape[:2]) if lse else None
        self._module.attend(
            self.name,
            compiled(pool),
            pool.base,
            pool.stride,
            query if query.stride(-1) == 1 else query.contiguous(),
            out,
            sums,
            step.pages,
            step.page_start,
            step.query_start,
            step.first,
            step.last,
            None if options.sinks is None else options.sinks.detach().float().contiguous(),
            options.scale,
            options.softcap or 0.0,
            precise,
            torch.get_num_threads(),
        )
        return Attended(out, sums)

    def _attend_chunk(self, query: torch.Tensor, pool: Pool, chunk: Chunk, options: Options) -> Attended:
        mask = None
        if not chunk.causal:
            position = torch.arange(chunk.tokens)
            first, last = torch.from_numpy(chunk.first)[:, None], torch.from_numpy(chunk.last)[:, None]
            mask = ((position >= first) & (position < last))[None, None]
        shape = Rectangle(chunk.pages[None], 0, chunk.tokens)
        return self._attend_blocks(query[None].transpose(1, 2), pool, shape, options, mask, chunk.window)

    def _attend_under_mask(self, query: torch.Tensor, pool: Pool, step: Step, options: Options, lse: bool) -> Attended:
        assert step.rectangle is not None
        queries = query.unflatten(0, (len(step), -1)).transpose(1, 2)
        found = self._attend_blocks(queries, pool, step.rectangle, options, step.mask, None)
        return found if lse else Attended(found.out)

    def _attend_blocks(
        self,
        query: torch.Tensor,
        pool: Pool,
        shape: Rectangle,
        options: Options,
        mask: torch.Tensor | None,
        window: int | None,
    ) -> Attended:
        """query: [sequences, q_heads, query tokens of each, k_dim]."""
        layout = pool.layout
        # one layout in memory, whatever else the step holds: products are rounded by it
        q = layout.k.rotate(query.float().contiguous())
        q = q.to(torch.bfloat16) if query.dtype == torch.bfloat16 else q
        out, lse = prefill.attend(q, pool, shape, options, self.name, mask=mask, window=window)
        out = layout.v.unrotate(out).transpose(1, 2).flatten(0, 1).to(query.dtype).contiguous()
        return Attended(out, lse.transpose(1, 2).flatten(0, 1))


def _contiguous_vectors(states: torch.Tensor) -> torch.Tensor:
    states = states.detach()
    return states if states.stride(-1) == 1 else states.contiguous()
