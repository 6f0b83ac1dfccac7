"""What decoding moves on a GPU, counted by running the attention kernel's machine code on a CPU (tests/support/ptx).

    PYTHONPATH=tests/support python benchmarks/gpu_traffic.py 90 turbo4 turbo3 q8_0

One sequence of 4,096 tokens, 4 query heads a kv head, head_dim 128. A row is K and V of one token and kv head.
"""

from __future__ import annotations

import sys

import torch
from ptx.launching import Launched, use_machine_code
from ptx.traffic import Traffic
from row_pages import row_pages

from stratakv.kernels.kernel import Options
from stratakv.kernels.step import Step
from stratakv.kernels.triton.kernel import Triton

CONTEXT, GROUPS, DIM = 4096, 4, 128


def main() -> None:
    """Prints a line a type."""
    capability, *names = sys.argv[1:]
    use_machine_code(int(capability))
    for name in names:
        given = row_pages(name, name, (DIM, DIM), [CONTEXT])
        layout = given.pool.layout
        query, step = torch.randn(1, layout.kv_heads * GROUPS, DIM), Step.causal(given.tables, [CONTEXT], [1])
        Launched.observer = traffic = Traffic()
        Triton().attend(query, given.pool, step, Options(DIM**-0.5))
        rows = CONTEXT * layout.kv_heads
        print(
            f"{name}: {layout.k_bytes + layout.v_bytes} bytes a row, {traffic.wanted / rows:.0f} are named, "
            f"{traffic.sectors / rows:.0f} in sectors; {traffic.cycles / rows:.1f} cycles of shared memory, "
            f"{traffic.ideal / rows:.1f} without conflicts"
        )


if __name__ == "__main__":
    main()
