"""Vectors to a type's bytes outside of any cache, as fast as a cache's kernel writes them."""

from __future__ import annotations

import numpy as np
import torch

from stratakv.kernels.choice import TORCH, kernel_for, order_of
from stratakv.kernels.status import new_codes
from stratakv.kvtypes import KVType
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool


def encode(type_: KVType, x: torch.Tensor) -> torch.Tensor:
    """Floats [..., head_dim] -> uint8 [..., nbytes]: `KVType.encode`, its bytes and its errors, by the kernel in use."""
    head_dim, nbytes = x.shape[-1], type_.nbytes(x.shape[-1])
    layout = PageLayout(type_, type_, head_dim, head_dim, 1, order=order_of(x.device))
    kernel, rows = kernel_for(layout, x.device), x.reshape(-1, 1, head_dim)
    if kernel is TORCH or not len(rows):
        return type_.encode(x)
    pages = -(-len(rows) // PAGE_TOKENS)
    pool = Pool(layout, torch.empty(pages, layout.page_bytes, dtype=torch.uint8, device=x.device))
    status = new_codes(device=x.device)
    kernel.append(pool, rows, rows, np.arange(len(rows)), status)
    if code := int(status[0]):
        raise ValueError(type_.refusal(code))
    packed = pool.read_tokens(np.arange(pages)[None], 0, len(rows))[0, 0, :, :nbytes]
    return packed.reshape(*x.shape[:-1], nbytes)
