"""Attention and encoding for engines that hold one pool of pages a layer: sequences of any lengths in one call.

    sequences = Sequences.causal(tables, lengths, queries)      # once a step, for all layers of a window group
    slots = sequences.slots()
    append(key, value, layout, pool, slots)                     # in each layer
    out = attention(query, layout, pool, sequences, scale=scale)

pool: the layer's pages, uint8 [pages, layout.page_bytes], contiguous; what pages hold before they are written doesn't matter.
States are [tokens, heads, head_dim], all sequences' tokens one after another, as models compute them. Sequences with many query
tokens (chunks of prompts) and with few (decoding) may be mixed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels import cpu_attention, cpu_encode, prefill
from stratakv.kernels.attention import dense_attention
from stratakv.kernels.choice import compiled_kernel, precise
from stratakv.kernels.sequences import Sequences
from stratakv.pages.layout import PAGE_TOKENS, PageLayout


def append(
    key: torch.Tensor, value: torch.Tensor, layout: PageLayout, pool: torch.Tensor, slots: NDArray[np.int64]
) -> None:
    """Encode K and V of some tokens into the pool's pages.

    key, value: floats [tokens, kv_heads, k_dim or v_dim]. slots: int64 [tokens], page * PAGE_TOKENS + place within the page;
    a negative one isn't stored. cpu_encode.CannotStoreError (a ValueError) for inf and nan and for values too large for the type.
    """
    if compiled_kernel(layout, pool.device):
        base, stride = pool.data_ptr(), layout.page_bytes
        cpu_encode.append(key, value, layout, slots, base=base, stride=stride)
        return
    packed = []
    for side, type_, states in (("K", layout.k, key), ("V", layout.v, value)):
        try:
            packed.append(type_.encode(states.detach()))
        except ValueError as error:
            raise cpu_encode.CannotStoreError(side, type_, "non-finite" in str(error)) from error
    stored = torch.from_numpy(np.flatnonzero(slots >= 0)).to(pool.device)
    kept = torch.from_numpy(slots[slots >= 0]).to(pool.device)
    positions = torch.from_numpy(layout.positions.copy()).to(pool.device)[kept % PAGE_TOKENS]
    tiles = pool.view(len(pool), layout.kv_heads, layout.tile_bytes)
    heads = torch.arange(layout.kv_heads, device=pool.device)
    where = ((kept // PAGE_TOKENS)[:, None, None], heads[None, :, None], positions[:, None, :])
    tiles[where] = torch.cat(packed, dim=-1)[stored]


def attention(
    query: torch.Tensor,
    layout: PageLayout,
    pool: torch.Tensor,
    sequences: Sequences,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each sequence's query tokens over its pages.

    query: floats [query tokens, q_heads, k_dim]; sequences, softcap, sinks: as in cpu_attention.attend. Returns
    [query tokens, q_heads, v_dim] in query's dtype, contiguous; zeros where a query sees nothing.
    """
    if not compiled_kernel(layout, pool.device):
        return _torch_attention(query, layout, pool, sequences, scale, softcap, sinks)
    base, stride = pool.data_ptr(), layout.page_bytes

    def read(rows: torch.Tensor, some: Sequences, exactly: bool) -> torch.Tensor:
        return cpu_attention.attend(
            rows,
            layout,
            some,
            scale=scale,
            softcap=softcap,
            sinks=sinks,
            precise=exactly or precise(),
            base=base,
            stride=stride,
        )

    short = sequences.short_chunks
    if not sequences.chunks and not len(short.tokens):
        return read(query, sequences, False)
    out = torch.empty(*query.shape[:2], layout.v_dim, dtype=query.dtype)
    for part, exactly in ((sequences.others, False), (short, True)):
        if len(part.tokens):
            rows = torch.from_numpy(part.tokens)
            out[rows] = read(query[rows], part.sequences, exactly)
    for chunk in sequences.chunks:
        # one layout in memory, whatever else the step holds: products are rounded by it
        q = layout.k.rotate(query[chunk.queries].transpose(0, 1)[None].float().contiguous())
        q = q.to(torch.bfloat16) if query.dtype == torch.bfloat16 else q
        tokens = prefill.Tokens(layout, chunk.pages[None], 0, chunk.tokens, base, stride)
        result = prefill.attend(q, tokens, scale=scale, window=chunk.window, softcap=softcap, sinks=sinks)
        out[chunk.queries] = layout.v.unrotate(result)[0].transpose(0, 1).to(query.dtype)
    return out


def _torch_attention(
    query: torch.Tensor,
    layout: PageLayout,
    pool: torch.Tensor,
    sequences: Sequences,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The reference: one sequence after another, decoded whole."""
    out = query.new_zeros(*query.shape[:2], layout.v_dim)
    tiles = pool.view(len(pool), layout.kv_heads, layout.tile_bytes)
    gather = torch.from_numpy(layout.positions.reshape(-1).copy()).to(pool.device)
    width = layout.k_bytes + layout.v_bytes
    for s in range(len(sequences)):
        here = slice(int(sequences.query_start[s]), int(sequences.query_start[s + 1]))
        last, first = (torch.from_numpy(x[here]).to(pool.device)[:, None] for x in (sequences.last, sequences.first))
        if here.start == here.stop or int(last.max()) == 0:
            continue
        table = torch.from_numpy(sequences.pages[sequences.page_start[s] : sequences.page_start[s + 1]])
        rows = tiles[table.to(pool.device)].index_select(2, gather)
        rows = rows.view(len(table), layout.kv_heads, PAGE_TOKENS, width).transpose(0, 1).flatten(1, 2)
        rows = rows[:, : int(last.max())]
        k = layout.k.decode_stored(rows[..., : layout.k_bytes], layout.k_dim)
        v = layout.v.decode_stored(rows[..., layout.k_bytes :], layout.v_dim)
        position = torch.arange(rows.shape[1], device=pool.device)
        mask = (position >= first) & (position < last)
        # what no query sees may be anything
        k, v = (torch.where(mask.any(0)[None, :, None], x, 0.0) for x in (k, v))
        q = layout.k.rotate(query[here].transpose(0, 1).float())
        attended = dense_attention(q[None], k[None], v[None], scale, mask[None, None], False, softcap, sinks)
        attended = layout.v.unrotate(attended)[0].transpose(0, 1)
        out[here] = torch.where(mask.any(1)[:, None, None], attended, 0.0).to(query.dtype)
    return out
