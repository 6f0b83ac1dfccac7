"""Attention of a prompt's piece over packed pages: CPU time of one thread for each query head and token that it sees.

`.venv/bin/python benchmarks/prompt_attention.py turbo4 tcq4/tcq3`
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from stratakv.kernels.choice import kernel_for
from stratakv.kernels.kernel import Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool

# head_dim, kv heads, query heads of each, tokens before the piece, its own
SHAPES = (64, 3, 3, 0, 448), (64, 3, 3, 7168, 512), (128, 2, 4, 7168, 256), (256, 1, 4, 7168, 256)
ROUNDS = 3


def nanoseconds(pair: str, head_dim: int, kv_heads: int, groups: int, before: int, tokens: int) -> float:
    """The fastest of some rounds."""
    total, generator = before + tokens, torch.Generator().manual_seed(0)
    k_type, _, v_type = pair.partition("/")
    layout = PageLayout(kv_type(k_type), kv_type(v_type or k_type), head_dim, head_dim, kv_heads)
    pages = np.arange(-(-total // PAGE_TOKENS))
    pool = Pool.fixed(layout, len(pages), torch.device("cpu"))
    kernel = kernel_for(layout, pool.device)
    k, v = (torch.randn(total, kv_heads, head_dim, generator=generator) for _ in range(2))
    kernel.append(pool, k, v, np.arange(total), new_codes())
    query = torch.randn(tokens, kv_heads * groups, head_dim, generator=generator)
    step = Step.causal([pages], [total], [tokens], prefill=np.ones(1, dtype=np.bool_))
    found = []
    for _ in range(1 + ROUNDS):
        begin = time.process_time()
        kernel.attend(query, pool, step, Options(head_dim**-0.5))
        found.append(time.process_time() - begin)
    return 1e9 * min(found[1:]) / (kv_heads * groups * sum(range(before + 1, total + 1)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["turbo4"]:
        for shape in SHAPES:
            head_dim, _, _, before, tokens = shape
            print(
                f"{name}, head_dim {head_dim}, {tokens} tokens on {before}: {nanoseconds(name, *shape):.2f} ns",
                flush=True,
            )
