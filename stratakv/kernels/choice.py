"""Which kernel runs: the best that this machine has, or the one that STRATAKV_KERNEL names."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from stratakv.errors import UserError
from stratakv.kernels.cpu_layout import MAX_HEAD_DIM, knows
from stratakv.kernels.native import native
from stratakv.pages.layout import PageLayout


@lru_cache(maxsize=1)
def kernel_names() -> tuple[str, ...]:
    """Kernels that run on this machine, best first, "torch" last."""
    module = native()
    return (*(module.kernels() if module else ()), "torch")


def precise() -> bool:
    """Whether decode attention multiplies in float32 instead of integers: STRATAKV_PRECISE=1 (slower, error below 1e-3).

    UserError for other values than 0 and 1.
    """
    wanted = os.environ.get("STRATAKV_PRECISE", "0")
    if wanted not in ("", "0", "1"):
        raise UserError(f"STRATAKV_PRECISE={wanted}: allowed are 0 and 1")
    return wanted == "1"


def kernel_name() -> str:
    """The kernel in use: STRATAKV_KERNEL if set, else the best. UserError for a name that doesn't run here."""
    wanted = os.environ.get("STRATAKV_KERNEL", "")
    if wanted and wanted not in kernel_names():
        raise UserError(
            f"STRATAKV_KERNEL={wanted}: not a kernel of this machine, these are: {', '.join(kernel_names())}"
        )
    return wanted or kernel_names()[0]


def compiled_kernel(layout: PageLayout, device: torch.device) -> str | None:
    """The compiled kernel that reads and writes these pages, None where plain torch does: another device than a CPU, types or
    head dims that no compiled kernel knows, STRATAKV_KERNEL=torch, no compiled module. Every call is dispatched by this.
    """
    fits = device.type == "cpu" and max(layout.k_dim, layout.v_dim) <= MAX_HEAD_DIM and knows(layout.k, layout.v)
    name = kernel_name()
    return name if fits and name != "torch" else None
