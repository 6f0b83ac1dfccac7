"""Which kernel runs: the best that a device has, or the one that STRATAKV_KERNEL names. The only place that chooses."""

from __future__ import annotations

import os
from functools import cache, lru_cache

import torch

from stratakv.errors import UserError
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.kernel import DeviceKernel, Kernel
from stratakv.kernels.native import native
from stratakv.kernels.torch_kernel import Torch
from stratakv.kernels.triton.kernel import Triton
from stratakv.pages.layout import Order, PageLayout

TORCH = Torch()
DEVICE_KERNELS: tuple[DeviceKernel, ...] = (Triton(),)
"""Of other devices than CPUs, of each kind of device the best first. `show` says what each would read."""
CPU = torch.device("cpu")


@lru_cache(maxsize=1)
def kernel_names() -> tuple[str, ...]:
    """Kernels that run on this machine's CPU, best first, "torch" last."""
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


def kernel_name(device: torch.device = CPU) -> str:
    """The kernel in use on a device: STRATAKV_KERNEL if set, else the best. UserError for a name that doesn't run here."""
    names = (*kernel_names(), *(each.name for each in DEVICE_KERNELS if not each.missing()))
    wanted = os.environ.get("STRATAKV_KERNEL", "")
    if wanted and wanted not in names:
        why = next((f" ({each.missing()})" for each in DEVICE_KERNELS if each.name == wanted), "")
        raise UserError(f"STRATAKV_KERNEL={wanted}: not a kernel of this machine{why}, these are: {', '.join(names)}")
    if device.type == "cpu":
        return wanted or names[0]
    # a CPU's kernel that is asked for is the kept layers' of a model on a GPU
    if wanted == TORCH.name or _named(wanted):
        return wanted
    return next((each.name for each in DEVICE_KERNELS if each.device == device.type), TORCH.name)


def preferred(device: torch.device = CPU) -> Kernel:
    """The kernel in use on a device, for pages that it reads."""
    name = kernel_name(device)
    return TORCH if name == TORCH.name else _named(name) or _cpu_kernel(name, precise())


@cache
def _cpu_kernel(name: str, precise: bool) -> CpuKernel:
    """One object for all layers."""
    return CpuKernel(name, precise)


def why_torch(layout: PageLayout, device: torch.device) -> str:
    """Why pages are read and written in plain torch, where `kernel_for` says so, in words."""
    if refused := preferred(device).refuses(layout, device):
        return refused
    if os.environ.get("STRATAKV_KERNEL") == TORCH.name:
        return f"STRATAKV_KERNEL={TORCH.name}"
    return "no compiled module" if device.type == "cpu" else f"no kernel for {device.type}"


def order_of(device: torch.device) -> Order:
    """How the bytes of a device's pages lie: as the kernel in use there reads them."""
    kernel = _named(kernel_name(device))
    return "tile" if kernel is None else kernel.order


def _named(name: str) -> DeviceKernel | None:
    return next((each for each in DEVICE_KERNELS if each.name == name), None)


def kernel_for(layout: PageLayout, device: torch.device) -> Kernel:
    """The kernel that reads and writes these pages: the one in use, or torch where that refuses."""
    kernel = preferred(device)
    return kernel if kernel.refuses(layout, device) is None else TORCH
