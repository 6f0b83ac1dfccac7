"""Encoding by the compiled kernels: states in, bytes straight into pages, the same bytes as the types' torch bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.choice import kernel_name
from stratakv.kernels.cpu_layout import native_layout
from stratakv.kernels.native import native
from stratakv.kvtypes import KVType
from stratakv.pages.layout import PageLayout


class CannotStoreError(ValueError):
    """States that a type can't hold. side: "K" or "V"."""

    def __init__(self, side: str, type_: KVType, non_finite: bool) -> None:
        self.side = side
        super().__init__(
            f"non-finite values (inf or nan) can't be stored as {type_.name}"
            if non_finite
            else f"values too large for {type_.name} (a stored f16 would be beyond 65504)"
        )


def append(
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PageLayout,
    slots: NDArray[np.int64],
    *,
    base: int = 0,
    stride: int = 1,
    kernel: str | None = None,
) -> None:
    """Encode K and V of some tokens into their pages, each token wherever it belongs.

    key, value: float32, float16 or bfloat16 [tokens, kv_heads, k_dim or v_dim] on the CPU, strided as they come (values of a
    vector side by side). slots: int64 [tokens], page * PAGE_TOKENS + place within the page; a negative one isn't stored.
    Page p begins at the address base + p * stride: pages of one pool, or, by the defaults, addresses themselves.

    CannotStoreError for inf and nan and for values too large for the type: what was written of these tokens is undefined, and
    nobody reads it as long as their sequences' lengths don't grow.
    """
    module: Any = native()
    side, what = module.append(
        kernel or kernel_name(),
        native_layout(layout),
        base,
        stride,
        _contiguous_vectors(key),
        _contiguous_vectors(value),
        slots,
        torch.get_num_threads(),
    )
    if side >= 0:
        raise CannotStoreError("KV"[side], (layout.k, layout.v)[side], non_finite=what == 1)


def _contiguous_vectors(states: torch.Tensor) -> torch.Tensor:
    states = states.detach()
    return states if states.stride(-1) == 1 else states.contiguous()
