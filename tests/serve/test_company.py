"""The same request alone and in company: with `deterministic`, every log-probability to the last bit, so every draw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stratakv.serve.engine import Engine
from stratakv.serve.request import GenerationRequest, SamplingParams
from stratakv.serve.ticket import collect

LENGTHS = [5, 130, 37, 300, 128, 411]
Found = list[tuple[int, float | None]]


async def answer(engine: Engine, request: GenerationRequest, delay: float = 0.0) -> Found:
    await asyncio.sleep(delay)
    _, pieces, finish = await collect(engine.submit(request))
    assert finish.reason == "length"
    return [(token.id, token.logprob) for piece in pieces for token in piece.tokens]


async def both(engine: Engine, requests: list[GenerationRequest]) -> tuple[list[Found], list[Found]]:
    """Each by itself, then all of them, each a little later than the one before."""
    alone = [await answer(engine, request) for request in requests]
    company = await asyncio.gather(*(answer(engine, request, 0.02 * at) for at, request in enumerate(requests)))
    return alone, list(company)


@pytest.mark.parametrize("profile", ["turbo4", "q8_0/turbo4"])
@pytest.mark.parametrize("prefixes", [False, True], ids=["", "prefixes"])
def test_company_changes_nothing(
    engines: Callable[..., Engine], text_ids: list[int], profile: str, prefixes: bool
) -> None:
    engine = engines(profile, slots=6, deterministic=True, prefix_cache=prefixes)
    sampling = SamplingParams(seed=42, temperature=0.8, logprobs=0)
    requests = [GenerationRequest(tuple(text_ids[: 2 * n : 2]), 24, sampling, ignore_eos=True) for n in LENGTHS]
    alone, company = asyncio.run(both(engine, requests))
    assert company == alone


def test_without_it_draws_hang_on_probabilities(engines: Callable[..., Engine], text_ids: list[int]) -> None:
    """Prompts of one piece: nothing differs but the number of rows in a step, and with it nothing at all."""
    engine = engines("turbo4", slots=6, prefix_cache=False)
    sampling = SamplingParams(seed=42, temperature=0.8, logprobs=0)
    requests = [GenerationRequest(tuple(text_ids[at : at + 30]), 24, sampling, ignore_eos=True) for at in range(6)]

    async def all_at_once() -> tuple[list[Found], list[Found]]:
        alone = [await answer(engine, request) for request in requests]
        return alone, list(await asyncio.gather(*(answer(engine, request) for request in requests)))

    alone, company = asyncio.run(all_at_once())
    assert company == alone
