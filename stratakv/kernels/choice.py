"""Which kernel runs: the best that this machine has, or the one that STRATAKV_KERNEL names. The only place that chooses."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from stratakv.errors import UserError
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.kernel import Kernel
from stratakv.kernels.native import native
from stratakv.kernels.torch_kernel import Torch
from stratakv.pages.layout import PageLayout

TORCH = Torch()


@lru_cache(maxsize=1)
def kernel_names() -> tuple[str, ...]:
    """Kernels that run on this machine, best first, "torch" last."""
    module = native()
    return (*(module.kernels() if module else ()), TORCH.name)


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


def preferred() -> Kernel:
    """The kernel in use, for pages that it reads."""
    name = kernel_name()
    return TORCH if name == TORCH.name else CpuKernel(name, precise())


def kernel_for(layout: PageLayout, device: torch.device) -> Kernel:
    """The kernel that reads and writes these pages: the one in use, or torch where that refuses."""
    kernel = preferred()
    return kernel if kernel.refuses(layout, device) is None else TORCH
