"""What `update()` gives back to the model: a tensor that only points at packed pages.

Our attention function recognises it and reads the pages; any other operation of a model decodes it to a dense tensor. So
unknown models are right, known ones are fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from stratakv.errors import UserError
from stratakv.kernels.placing import Placed
from stratakv.kernels.spans import Mixture
from stratakv.kernels.step import Rectangle
from stratakv.kvtypes import KVType
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.pool import Pool

Side = Literal["k", "v"]


class CannotBatchError(RuntimeError):
    """A model does something to K and V that only works for one sequence at a time."""


class PackedStates(torch.Tensor):
    """A handle on one layer's K or V, of logical shape [batch, kv_heads, tokens, head_dim]: all that its step's queries may see.

    Where sequences of any lengths share a forward call they have no common shape that it could be decoded to: it is then
    [1, kv_heads, tokens of the step, head_dim], and only the attention function "stratakv" can use it; anything else is a
    CannotBatchError. A handle is good until its layer's next step: pages that were freed may hold something else after it.
    """

    placed: Placed
    side: Side

    @staticmethod
    def __new__(cls, placed: Placed, side: Side, dtype: torch.dtype) -> PackedStates:
        layout = placed.pool.layout
        batch, tokens = placed.shape or (1, len(placed.step.slots))
        shape = batch, layout.kv_heads, tokens, layout.k_dim if side == "k" else layout.v_dim
        handle: PackedStates = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=placed.pool.device)
        handle.placed, handle.side = placed, side
        return handle

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedStates({self.side}: {self._type.name}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def decoded(self, block: int | None = None) -> torch.Tensor:
        """A dense contiguous tensor of the handle's shape and dtype.

        block: of layers with spans, what the queries at a page's positions see; None where the step has queries in one block
        only. UserError where it has more: what is fine for one is sealed for another. The cache is of no use then.
        """
        placed = self.placed
        if placed.shape is None:
            raise CannotBatchError("cached K or V of sequences that share a forward call can't be decoded")
        if placed.mixture is not None:
            return self._mixed(placed.mixture, block).to(self.dtype).contiguous()
        assert placed.step.rectangle is not None
        return self._of(placed.pool, placed.step.rectangle).to(self.dtype).contiguous()

    def _mixed(self, mixture: Mixture, block: int | None) -> torch.Tensor:
        blocks = mixture.blocks()
        if block is None and len(blocks) > 1:
            raise UserError(
                f"the model reads K and V by itself, and {mixture.tokens} tokens at once see pages of {PAGE_TOKENS} tokens in "
                f"unlike types: begin again with a new cache and give prompts in pieces that end where pages do, or take a "
                f"profile without spans"
            )
        shapes = mixture.rectangles(blocks[0][0] if block is None else block)
        pools = self.placed.pool, self.placed.pool if self.placed.sealed is None else self.placed.sealed.pool
        there = [(pool, shape, at) for pool, (shape, at) in zip(pools, shapes, strict=True) if len(at)]
        order = np.argsort(np.concatenate([at for *_, at in there]))
        parts = torch.cat([self._of(pool, shape) for pool, shape, _ in there], dim=2)
        return parts[:, :, torch.from_numpy(order).to(parts.device)]

    def _of(self, pool: Pool, shape: Rectangle) -> torch.Tensor:
        rows = pool.read_tokens(shape.tables, shape.start, shape.tokens)
        layout = pool.layout
        if self.side == "k":
            return layout.k.decode(rows[..., : layout.k_bytes], layout.k_dim)
        return layout.v.decode(rows[..., layout.k_bytes :], layout.v_dim)

    @property
    def _type(self) -> KVType:
        layout = self.placed.pool.layout
        return layout.k if self.side == "k" else layout.v

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        given: list[PackedStates] = []
        tree_map_only(PackedStates, given.append, (args, kwargs or {}))
        if any(handle.placed.shape is None for handle in given):
            raise CannotBatchError(f"the model applies {func} to cached K or V")
        args, kwargs = tree_map_only(PackedStates, PackedStates.decoded, (args, kwargs or {}))
        return func(*args, **kwargs)


def handles(placed: Placed, dtype: torch.dtype) -> tuple[PackedStates, PackedStates]:
    """On K and on V."""
    return PackedStates(placed, "k", dtype), PackedStates(placed, "v", dtype)
