"""Products of packed rows on one core: bytes read a second for one token, multiply-adds a second for 512.

    python benchmarks/products.py

Random matrices that ggml packed, 4096 x 2048, in rotation so that none stays in a cache; medians of 9.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from ggml_rows import TILED, PackedRows

from stratakv.kernels.native import native
from stratakv.machine import cpu_model

ROWS, COLUMNS, COPIES, TOKENS = 4096, 2048, 12, 512


def seconds(work: Callable[[], None]) -> float:
    """Median time of a call, the first one left out."""
    work()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    module: Any = native()
    kernels = module.tile_kernels()[:-1]
    print(cpu_model())
    print("| type | " + " | ".join(f"{name}, 1 token | {name}, {TOKENS} tokens" for name in kernels) + " |")
    print("|---" + "|---:|---:" * len(kernels) + "|")
    for kind in TILED:
        matrices = [PackedRows(kind, ROWS, COLUMNS, seed=0) for _ in range(1 if kind == "F32" else COPIES // 4)]
        cells = []
        for name in kernels:
            assert module.use_tiles(name)
            one, many = torch.randn(1, COLUMNS), torch.randn(TOKENS, COLUMNS)

            def rotate(x: torch.Tensor = one, matrices: list[PackedRows] = matrices) -> None:
                for matrix in matrices:
                    matrix(x)

            few = seconds(rotate) / len(matrices)
            more = seconds(lambda x=many, first=matrices[0]: first(x))  # type: ignore[misc]
            cells.append(
                f"{matrices[0].data.nbytes / few / 1e9:.1f} GB/s | {TOKENS * ROWS * COLUMNS / more / 1e9:.0f} G/s"
            )
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
