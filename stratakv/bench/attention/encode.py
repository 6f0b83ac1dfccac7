"""Encoding into pages on one core: nanoseconds a vector in bulk, and microseconds to append one token."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from stratakv.bench.attention.caches import Shape, random_states
from stratakv.bench.timing import Case, interleaved, timed, torch_threads
from stratakv.engine.cache.layers import PackedLayer
from stratakv.kvtypes import kv_type, type_names

_BULK_TOKENS = 512


def encode_rows(shape: Shape, seconds: float) -> list[dict[str, Any]]:
    """For every type (K and V alike): ns_per_vector of an update with 512 tokens, us_per_token of one with a single token.

    float32 states, one thread, the cache's own update with all its Python; new pages are allocated on the way.
    """
    states = random_states(shape, _BULK_TOKENS)
    cases: dict[str, Case] = {}
    for name in type_names():
        cases[name] = _update(name, states)
        cases[f"{name} 1"] = _update(name, states[:, :, :1])
    with torch_threads(1):
        found = interleaved(cases, seconds=seconds, most=10)
    vectors = 2 * _BULK_TOKENS * shape.kv_heads
    return [
        {
            "name": name,
            "head_dim": shape.head_dim,
            "ns_per_vector": 1e9 * median(found[name]) / vectors,
            "us_per_token": 1e6 * median(found[f"{name} 1"]),
        }
        for name in type_names()
    ]


def _update(name: str, states: torch.Tensor) -> Case:
    layer = PackedLayer("bench", kv_type(name), kv_type(name))
    tokens = states.shape[2]

    def append(turn: int) -> None:
        layer.update(states, states)
        layer.crop(-tokens)

    return timed(append)
