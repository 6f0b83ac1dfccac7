"""Pages of one pool become pages of another, in its types: how pages are sealed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stratakv.kernels.kernel import Kernel
from stratakv.pages.pool import Pool

_AT_ONCE = 8  # pages; decoded values take 8 times their bytes


def convert(source: Pool, target: Pool, kernel: Kernel, pairs: Sequence[tuple[int, int]], status: torch.Tensor) -> None:
    """Whole pages, from their stored bytes: decoded by their types and encoded by the target's. So what a page becomes depends
    on what it holds alone.

    kernel: the target's. pairs: numbers of a page in source and target. status: where it says what is too large for the
    target's types, as `Kernel.append` does; nothing waits for the device.
    """
    layout, size = source.layout, source.layout.page_tokens
    for begin in range(0, len(pairs), _AT_ONCE):
        old, new = np.array(pairs[begin : begin + _AT_ONCE], dtype=np.int64).T.copy()
        rows = source.read(torch.from_numpy(old).to(source.device, non_blocking=True))
        packed = rows[..., : layout.k_bytes], rows[..., layout.k_bytes :]
        sides = zip((layout.k, layout.v), packed, (layout.k_dim, layout.v_dim), strict=True)
        k, v = (type_.decode(part, dim).transpose(1, 2).flatten(0, 1) for type_, part, dim in sides)
        kernel.append(target, k, v, (new[:, None] * size + np.arange(size)).reshape(-1), status)
