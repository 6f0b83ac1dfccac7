"""What `update()` gives back to the model: a tensor that only points at packed pages.

Our attention function recognises it and reads the pages; any other operation of a model decodes it to a dense tensor. So
unknown models are right, known ones are fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_map_only

from stratakv.kernels.placing import Placed
from stratakv.kvtypes import KVType

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
        layout, rectangle = placed.pool.layout, placed.step.rectangle
        batch, tokens = (1, len(placed.step.slots)) if rectangle is None else (len(placed.step), rectangle.tokens)
        shape = batch, layout.kv_heads, tokens, layout.k_dim if side == "k" else layout.v_dim
        handle: PackedStates = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=placed.pool.device)
        handle.placed, handle.side = placed, side
        return handle

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedStates({self.side}: {self._type.name}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def decoded(self) -> torch.Tensor:
        """A dense contiguous tensor of the handle's shape and dtype."""
        pool, rectangle = self.placed.pool, self.placed.step.rectangle
        if rectangle is None:
            raise CannotBatchError("cached K or V of sequences that share a forward call can't be decoded")
        rows = pool.read_tokens(rectangle.tables, rectangle.start, rectangle.tokens)
        k_bytes = pool.layout.k_bytes
        packed = rows[..., :k_bytes] if self.side == "k" else rows[..., k_bytes:]
        return self._type.decode(packed, self.shape[-1]).to(self.dtype).contiguous()

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
        if any(handle.placed.step.rectangle is None for handle in given):
            raise CannotBatchError(f"the model applies {func} to cached K or V")
        args, kwargs = tree_map_only(PackedStates, PackedStates.decoded, (args, kwargs or {}))
        return func(*args, **kwargs)


def handles(placed: Placed, dtype: torch.dtype) -> tuple[PackedStates, PackedStates]:
    """On K and on V."""
    return PackedStates(placed, "k", dtype), PackedStates(placed, "v", dtype)
