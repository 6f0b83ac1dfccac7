"""The machine that numbers were measured on, as every result names it."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import psutil
import torch

from stratakv.kernels.native import native


def machine() -> dict[str, Any]:
    """What a result must name to be compared with another one; `memory` is the machine's, in bytes.

    `features` are the instruction sets kernels can use, found by the compiled module: empty without it. `malloc` has
    the allocator settings of the environment, which change CPU timings several times over.
    """
    module = native()
    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "logical_cores": os.cpu_count(),
        "features": module.cpu_features() if module else [],
        "memory": psutil.virtual_memory().total,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "compiler": module.compiler() if module else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "malloc": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
    }


def device_name(device: torch.device) -> str:
    """A GPU's name, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def cpu_model() -> str:
    """The processor's name as the operating system gives it, or the architecture's where it gives none."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    elif sys.platform == "darwin":
        import subprocess

        name = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if name.stdout.strip():
            return name.stdout.strip()
    return platform.processor() or platform.machine()
