"""The same request alone and in company: every log-probability to the last bit, so every draw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stratakv.serve.engine import Engine
from stratakv.serve.request import GenerationRequest
from stratakv.serve.samplers import SamplingParams
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
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_company_changes_nothing(
    engines: Callable[..., Engine], text_ids: list[int], profile: str, prefixes: bool, deterministic: bool
) -> None:
    engine = engines(profile, slots=6, deterministic=deterministic, prefix_cache=prefixes)
    sampling = SamplingParams(seed=42, temperature=0.8, logprobs=0)
    requests = [GenerationRequest(tuple(text_ids[: 2 * n : 2]), 24, sampling, ignore_eos=True) for n in LENGTHS]
    alone, company = asyncio.run(both(engine, requests))
    assert company == alone
