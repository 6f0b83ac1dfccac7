"""Pages of one pool become pages of another, in its types: how pages are sealed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stratakv.kernels.kernel import Kernel
from stratakv.pages.pool import Pool
from stratakv.pages.sending import sent

_AT_ONCE = 8  # pages; decoded values take 8 times their bytes


def convert(kernel: Kernel, source: Pool, target: Pool, pairs: Sequence[tuple[int, int]], status: torch.Tensor) -> None:
    """`Kernel.convert` by the types themselves, and the kernel's `append`; nothing waits for the device."""
    layout, size = source.layout, source.layout.page_tokens
    for begin in range(0, len(pairs), _AT_ONCE):
        old, new = np.array(pairs[begin : begin + _AT_ONCE], dtype=np.int64).T.copy()
        rows = source.read(sent(old, source.device))
        packed = rows[..., : layout.k_bytes], rows[..., layout.k_bytes :]
        sides = zip((layout.k, layout.v), packed, (layout.k_dim, layout.v_dim), strict=True)
        k, v = (type_.decode_exactly(part, dim).transpose(1, 2).flatten(0, 1) for type_, part, dim in sides)
        kernel.append(target, k, v, (new[:, None] * size + np.arange(size)).reshape(-1), status)
