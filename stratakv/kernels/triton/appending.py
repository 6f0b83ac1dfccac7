"""Launching what encodes into pages."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.triton.encoder import Encoder, Numbers, encoder_of, numbers_of
from stratakv.kernels.triton.side import Name, Side, side_of
from stratakv.pages.pool import Pool
from stratakv.pages.sending import sent

SEAM = 32  # steps before and after a path's start that decide its state: kvtypes/viterbi.py
# of a thread, at most: left to itself ptxas spills some of a head_dim of 256 to fit one program more
REGISTERS = 128
_VALUES = 1 << 26  # of trellis types that are encoded at once: bounds working memory, and offsets fit in 32 bits
BLOCKS = 32  # whose paths one program follows, a thread each


def write(pool: Pool, name: Name, states: torch.Tensor, slots: torch.Tensor, status: torch.Tensor) -> None:
    """One side of some tokens into their pages, for a side that has an encoder. states: floats [tokens, kv_heads, dim]. slots:
    int64 [tokens]. status: int32 [1 or more], the first one raised."""
    layout = pool.layout
    encoder, side = encoder_of(layout, name), side_of(layout, name)
    assert encoder is not None
    x = states.detach()
    x = x if x.stride(-1) == 1 else x.contiguous()
    numbers = pool.once(("triton encoder", name), partial(numbers_of, layout, name, pool.device))
    with on(pool.device):
        if encoder.form == "trellis":
            tokens = max(_VALUES // (layout.kv_heads * side.dim), 1)
            for piece, places in zip(x.split(tokens), slots.split(tokens), strict=True):
                _through_trellis(pool, piece, places, status, numbers, side, encoder)
            return
        from stratakv.kernels.triton import encoding

        encoding.append[(-(-len(x) // encoder.tokens), layout.kv_heads)](
            x,
            slots,
            pool.memory,
            status,
            numbers.signs,
            numbers.paley,
            numbers.thresholds,
            numbers.integers,
            x.stride(0),
            x.stride(1),
            pool.stride,
            len(x),
            S=side,
            E=encoder,
            TILE_BYTES=layout.tile_bytes,
            num_warps=4,
            maxnreg=REGISTERS,
            enable_fp_fusion=False,
        )


def _through_trellis(
    pool: Pool,
    x: torch.Tensor,
    slots: torch.Tensor,
    status: torch.Tensor,
    numbers: Numbers,
    side: Side,
    encoder: Encoder,
) -> None:
    """Working memory: 3 bytes a value, of which there are `_VALUES` at most."""
    from stratakv.kernels.triton import trellis_encoding

    heads = pool.layout.kv_heads
    count = len(x) * heads * side.blocks
    bins = torch.empty(side.size, count, dtype=torch.int16, device=pool.device)
    ways = torch.empty(side.size // 4, count, dtype=torch.int32, device=pool.device)
    norms = torch.empty(count, dtype=torch.float32, device=pool.device)
    grid = -(-len(x) // encoder.tokens), heads
    constants: dict[str, Any] = {"S": side, "E": encoder, "HEADS": heads}
    constants |= {"num_warps": 4, "maxnreg": REGISTERS, "enable_fp_fusion": False}
    trellis_encoding.prepare[grid](
        x, status, bins, norms, numbers.signs, numbers.paley, x.stride(0), x.stride(1), len(x), **constants
    )
    trellis_encoding.paths[(-(-count // BLOCKS),)](
        bins, numbers.costs, ways, count, SIZE=side.size, SEAM=SEAM, R=BLOCKS, num_warps=1
    )
    trellis_encoding.finish[grid](
        slots,
        pool.memory,
        status,
        bins,
        ways.view(torch.uint8),
        norms,
        numbers.numbers,
        numbers.integers,
        pool.stride,
        len(x),
        TILE_BYTES=pool.layout.tile_bytes,
        **constants,
    )


_last_slots: tuple[NDArray[np.int64], torch.Tensor] | None = None


def sent_slots(slots: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """A step's slots on the device, sent once for all its layers, which give the same numbers one after another."""
    global _last_slots
    last = _last_slots
    if last is None or last[1].device != device or not np.array_equal(last[0], slots):
        own = np.array(slots, dtype=np.int64)
        _last_slots = last = own, sent(own, device)
    return last[1]


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
