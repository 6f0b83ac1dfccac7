"""In the place of a GPU: Triton compiles what is launched, as its launcher would, and the code is run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from ptx.machine import Observer, run
from ptx.program import parsed
from stratakv.kernels.triton import attention, encoding, kernel, trellis_encoding

KERNELS = {
    attention: ("attend", "merge"),
    encoding: ("append",),
    trellis_encoding: ("prepare", "paths", "finish"),
}


class _Driver:
    """What Triton asks of a GPU before it compiles."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


class Launched:
    """A kernel that is compiled and run where it would be launched."""

    observer: Observer | None = None  # of all launches

    def __init__(self, function: Any) -> None:
        self._function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            found = self._function.warmup(*arguments, grid=grid, **options)
            kinds = found.src.signature  # a number that is 1 is a constant, as those of the template are
            given = [
                x for name, x in zip(self._function.arg_names, arguments, strict=False) if kinds[name] != "constexpr"
            ]
            x, y, z = (*grid, 1, 1)[:3]
            run(parsed(found.asm["ptx"]), (x, y, z), given, found.metadata.shared, observer=Launched.observer)

        return launch


def use_machine_code(capability: int) -> None:
    """For all launches of this process from now on. capability: 90 for 9.0."""
    triton.runtime.driver.set_active(_Driver(capability))
    for module, names in KERNELS.items():
        for name in names:
            setattr(module, name, Launched(vars(module)[name]))
    vars(kernel)["interpreted"] = lambda: True  # a CPU will do
