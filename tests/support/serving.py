"""Requests to an engine, and their answers compared."""

from __future__ import annotations

import asyncio
from typing import Any

from stratakv.serve.engine import Engine
from stratakv.serve.request import Finish, GenerationRequest
from stratakv.serve.samplers import SamplingParams
from stratakv.serve.ticket import collect

GREEDY = SamplingParams(temperature=0, logprobs=2)


def answers(engine: Engine, requests: list[GenerationRequest]) -> list[tuple[str, list[Any], Finish]]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*[collect(engine.submit(request)) for request in requests])

    return asyncio.run(all_at_once())


def tokens_of(pieces: list[Any]) -> list[Any]:
    return [token for piece in pieces for token in piece.tokens]


def check_same(ours: list[Any], alone: list[Any], within: float = 0.1) -> None:
    """The same tokens, up to a place where the run alone had two tokens `within` nats.

    Prompts are cut into other pieces in company. Their attention is summed in another order then, and where that moves a packed
    activation or a stored code, a logit moves by up to 0.06. In float32 with lossless types nothing does: 1e-3 there.
    """
    for mine, theirs in zip(ours, alone, strict=False):
        if mine.id != theirs.id:
            gap = theirs.top[0][2] - theirs.top[1][2]
            assert gap <= within, f"{mine} instead of {theirs}"
            return
    assert len(ours) == len(alone)
