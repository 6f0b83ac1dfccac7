"""Handles on one step of many sequences: what `update()` gives back where sequences of any lengths share a forward call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.cache.handle import Side
from stratakv.cache.placed import address
from stratakv.kernels.sequences import Sequences
from stratakv.pages.pool import Pool


@dataclass(frozen=True)
class RaggedStep:
    """One step of a window group, made once for all its layers.

    sequences: block tables, and what each token sees. slots: int64 [tokens], where each token's K and V go.
    """

    sequences: Sequences
    slots: NDArray[np.int64]

    @cached_property
    def seen(self) -> tuple[tuple[NDArray[Any], ...], tuple[int, ...]]:
        """slots, pages, page_start, query_start, first and last, and their addresses."""
        one = self.sequences
        arrays = self.slots, one.pages, one.page_start, one.query_start, one.first, one.last
        return arrays, tuple(address(array) for array in arrays)


class CannotBatchError(RuntimeError):
    """A model does something to K and V that only works for one sequence at a time."""


class RaggedStates(torch.Tensor):
    """A handle on one layer's K or V of a step, logical shape [1, kv_heads, tokens of the step, head_dim].

    Only the attention function "stratakv" can use it: the sequences have no common shape that it could be decoded to.
    """

    arena: Pool
    step: RaggedStep

    @staticmethod
    def __new__(cls, arena: Pool, step: RaggedStep, side: Side, dtype: torch.dtype) -> RaggedStates:
        layout = arena.layout
        shape = (1, layout.kv_heads, len(step.slots), layout.k_dim if side == "k" else layout.v_dim)
        handle: RaggedStates = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=arena.device)
        handle.arena, handle.step = arena, step
        return handle

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        raise CannotBatchError(f"the model applies {func} to cached K or V")
