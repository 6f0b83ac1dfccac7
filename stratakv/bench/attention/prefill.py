"""Prefill over packed pages beside torch's SDPA on dense tensors: a whole prompt, and a chunk on top of a long one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stratakv.bench.attention.caches import PackedCache, Pair, Shape, pair_name, random_states
from stratakv.bench.peers.torch_attention import prefill_peers
from stratakv.bench.timing import Case, interleaved, spread, timed

GROUPS = 4


def prefill_rows(
    shape: Shape,
    pairs: tuple[Pair, ...],
    sizes: tuple[tuple[int, int], ...],
    seconds: float,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Causal attention of the last queries over a context, bf16 queries, 4 query heads a kv head.

    sizes: (tokens, queries). Rows: name, context, queries, ms, peer, ...; caches don't rotate, arithmetic is what takes time.
    """
    rows = []
    for tokens, queries in sizes:
        report(f"prefill, {queries} queries over {tokens} tokens")
        query = torch.randn(1, shape.kv_heads * GROUPS, queries, shape.head_dim).to(torch.bfloat16)
        dense = [random_states(shape, tokens, seed).to(torch.bfloat16) for seed in (0, 1)]
        cases: dict[str, Case] = {}
        for pair in pairs:
            cases[pair_name(pair)] = _ours(query, shape, pair, tokens)
        peers = prefill_peers(dense[0], dense[1], GROUPS, queries)
        for name, attention in peers.items():
            cases[name] = _theirs(query, attention)
        for name, times in interleaved(cases, seconds=seconds).items():
            rows.append(
                {
                    "name": name,
                    "context": tokens,
                    "queries": queries,
                    "q_heads": shape.kv_heads * GROUPS,
                    "kv_heads": shape.kv_heads,
                    "head_dim": shape.head_dim,
                    "threads": torch.get_num_threads(),
                    **spread(times),
                    "peer": "torch" if name in peers else None,
                }
            )
    return rows


def _theirs(query: torch.Tensor, attention: Callable[[torch.Tensor], torch.Tensor]) -> Case:
    return timed(lambda turn: attention(query))


def _ours(query: torch.Tensor, shape: Shape, pair: Pair, tokens: int) -> Case:
    cache = PackedCache(shape, pair, tokens)
    return timed(lambda turn: cache.attend(query))
