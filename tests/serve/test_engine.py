"""Many requests at once: the same tokens as alone, nothing lost, nobody hurt by somebody else's failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stratakv.serve.engine import Engine
from stratakv.serve.request import Finish, GenerationRequest, SamplingParams
from stratakv.serve.ticket import collect

GREEDY = SamplingParams(temperature=0, logprobs=2)


def answers(engine: Engine, requests: list[GenerationRequest]) -> list[tuple[str, list[Any], Finish]]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*[collect(engine.submit(request)) for request in requests])

    return asyncio.run(all_at_once())


def tokens_of(pieces: list[Any]) -> list[Any]:
    return [token for piece in pieces for token in piece.tokens]


def check_same(ours: list[Any], alone: list[Any]) -> None:
    """The same tokens, up to a place where the run alone had two tokens within 1e-3."""
    for mine, theirs in zip(ours, alone, strict=False):
        if mine.id != theirs.id:
            gap = theirs.top[0][2] - theirs.top[1][2]
            assert gap <= 1e-3, f"{mine} instead of {theirs}"
            return
    assert len(ours) == len(alone)


def prompts(ids: list[int], count: int) -> list[GenerationRequest]:
    lengths = [3, 40, 129, 9, 260, 128, 77, 1]
    return [
        GenerationRequest(tuple(ids[311 * i : 311 * i + lengths[i % len(lengths)]]), 24 + 3 * (i % 4), GREEDY)
        for i in range(count)
    ]


@pytest.mark.parametrize("profile", ["f32", "turbo4", "edges3"])
def test_together_as_alone(engines: Any, text_ids: list[int], profile: str) -> None:
    engine = engines(profile, slots=8, prefix_cache=False)
    assert engine.runner.batching.startswith("one forward call for all")
    requests = prompts(text_ids, 12)
    alone = [answers(engine, [request])[0] for request in requests]
    together = answers(engine, requests)
    for (_, ours, finish), (_, theirs, _) in zip(together, alone, strict=True):
        assert finish.reason == "length"
        check_same(tokens_of(ours), tokens_of(theirs))
    assert engine.snapshot().pages_used == 0
