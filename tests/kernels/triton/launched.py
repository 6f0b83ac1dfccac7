"""Runs a step on a CPU up to where Triton would launch: kernels are compiled for 9.0 from the arguments that they are given.

A process of its own: where Triton interprets, nothing is compiled. Prints the kernels' names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from row_pages import row_pages
from triton.backends.compiler import GPUTarget

from stratakv.kernels.kernel import Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kernels.triton import attention, encoding, trellis_encoding
from stratakv.kernels.triton.kernel import Triton


class Driver:
    """What Triton asks of a GPU before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            found = self.function.warmup(*args, grid=grid, **options)
            print(self.function.__name__, len(found.asm["cubin"]))

        return launch


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    for module in (attention, encoding, trellis_encoding):
        for name in ("attend", "merge", "append", "prepare", "paths", "finish"):
            if name in vars(module):
                setattr(module, name, Compiled(vars(module)[name]))
    given = row_pages("turbo4", "tcq4", (128, 128), [300, 20])
    step = Step.causal(given.tables, [300, 20], [1, 1])
    states, query = torch.randn(2, 2, 128, dtype=torch.bfloat16), torch.randn(2, 8, 128, dtype=torch.bfloat16)
    Triton().append(given.pool, states, states, step.slots, new_codes())
    Triton().attend(query, given.pool, step, Options(0.1, sinks=torch.ones(8)), lse=True)


if __name__ == "__main__":
    main()
