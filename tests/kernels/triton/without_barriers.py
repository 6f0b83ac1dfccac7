"""Runs the attention kernel's machine code without each of its barriers in turn, and prints what the machine finds, a line each.

A process of its own: where Triton interprets, nothing is compiled. Argument: the capability.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from ptx import launching
from ptx.memory import GpuError
from ptx.program import Program, parsed
from row_pages import row_pages

from stratakv.kernels.kernel import Options
from stratakv.kernels.step import Step
from stratakv.kernels.triton.kernel import Triton


class Without:
    """A parser that leaves the one barrier of `attend` out that it is told."""

    place: int | None = None
    count = 0

    def __call__(self, text: str) -> Program:
        program = parsed(text)
        if ".entry attend(" in text:
            barriers = [at for at, each in enumerate(program.instructions) if each.name == "bar.sync"]
            self.count = len(barriers)
            if self.place is not None:
                instructions = list(program.instructions)
                instructions[barriers[self.place]] = replace(instructions[barriers[self.place]], name="fence")
                return replace(program, instructions=tuple(instructions))
        return program


def main() -> None:
    launching.use_machine_code(int(sys.argv[1]))
    launching.parsed = parser = Without()
    given = row_pages("turbo4", "turbo3", (128, 128), [300, 20])
    step, query = Step.causal(given.tables, [300, 20], [1, 1]), torch.randn(2, 8, 128)
    Triton().attend(query, given.pool, step, Options(0.1))
    for place in range(parser.count):
        parser.place = place
        try:
            Triton().attend(query, given.pool, step, Options(0.1))
        except GpuError as fault:
            print(fault)
        else:
            print("nothing")


if __name__ == "__main__":
    main()
