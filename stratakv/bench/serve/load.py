"""Load on an OpenAI-compatible server: streamed completions, timed as a client sees them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from stratakv.errors import UserError


@dataclass
class Completion:
    """One streamed completion. Times are of time.perf_counter(), seconds: when it was sent, and when each piece of text came.

    tokens: as the server counts them, else the number of pieces.
    """

    sent: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.pieces[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return np.diff(self.pieces).tolist()


class Client:
    """A client of the server at `url` (http://127.0.0.1:PORT). Use it in `async with`."""

    def __init__(self, url: str, seconds: float = 600.0) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, timeout=seconds, limits=httpx.Limits(max_connections=None), trust_env=False
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """JSON of a GET."""
        answer: dict[str, Any] = (await self._http.get(path)).raise_for_status().json()
        return answer

    async def complete(
        self, prompt: str, tokens: int, seen: Callable[[], None] = lambda: None, answer: Completion | None = None
    ) -> Completion:
        """A greedy completion of `tokens` tokens; `seen` is called for each piece. UserError when the server refuses.

        answer: one to write into, for who wants what came before it cancelled the call.
        """
        answer = answer or Completion(0.0)
        answer.sent = time.perf_counter()
        body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        counted = None
        request = {**body, "stream_options": {"include_usage": True}}
        async with self._http.stream("POST", "/v1/completions", json=request) as response:
            if response.status_code != 200:
                raise UserError(f"the server answered {response.status_code}: {(await response.aread())[:300]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event.get("error"):
                    raise UserError(f"the server failed: {event['error']}")
                if any(choice.get("text") for choice in event.get("choices", ())):
                    answer.pieces.append(time.perf_counter())
                    seen()
                counted = (event.get("usage") or {}).get("completion_tokens", counted)
        answer.tokens = counted or len(answer.pieces)
        return answer


Prompts = Callable[[int], str]
"""The prompt of request number n."""


@dataclass(frozen=True)
class Load:
    """What a run of many requests came to. answers: all; seconds: from the first request to the last token."""

    answers: tuple[Completion, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of all answers together."""
        return sum(answer.tokens for answer in self.answers) / self.seconds


async def closed_loop(client: Client, clients: int, each: int, prompts: Prompts, tokens: int) -> Load:
    """`clients` at once, each sends its next request when the last one is done, `each` requests in all."""
    started = time.perf_counter()

    async def one(number: int) -> list[Completion]:
        return [await client.complete(prompts(number + clients * turn), tokens) for turn in range(each)]

    answers = [answer for found in await asyncio.gather(*map(one, range(clients))) for answer in found]
    return Load(tuple(answers), time.perf_counter() - started)


async def open_loop(client: Client, rate: float, count: int, seed: int, prompts: Prompts, tokens: int) -> Load:
    """`count` requests that come as a Poisson process of `rate` a second, whether earlier ones are done or not."""
    drawn, started = random.Random(seed), time.perf_counter()

    async def one(number: int, at: float) -> Completion:
        await asyncio.sleep(started + at - time.perf_counter())
        return await client.complete(prompts(number), tokens)

    times, at = [], 0.0
    for _ in range(count):
        at += drawn.expovariate(rate)
        times.append(at)
    answers = await asyncio.gather(*(one(number, at) for number, at in enumerate(times)))
    return Load(tuple(answers), time.perf_counter() - started)
