"""Many clients that stream at once and leave when they like, over a cache too small for them: no page is lost, nothing fails,
and every token is the one that the same prompt gets alone."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from servers import Running, embedded, running

from stratakv.assets import judging_text
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import resolve
from stratakv.serve.request import Limits

LEAVES = 0.3  # of the requests
LENGTHS = (118, 20, 250, 124, 380, 60, 247, 1, 122, 500, 126)  # of prompts; answers cross the borders of pages


@dataclass(frozen=True)
class Alone:
    """A prompt's greedy answer with nothing beside it."""

    prompt: list[int]
    tokens: list[int]


def prompts(count: int, randomly: random.Random) -> list[list[int]]:
    """Token ids of many lengths; of every second prompt two thirds are the beginning of one text."""
    ids = embedded().tokenizer(judging_text().read_text(encoding="utf-8")).input_ids
    made = []
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        shared = length * 2 // 3 if number % 2 == 0 else 0
        start = randomly.randrange(1000, len(ids) - length)
        made.append([*ids[:shared], *ids[start : start + length - shared]])
    return made


def alone(server: Running, prompt: list[int], tokens: int) -> Alone:
    """Ask an idle server, without its prefix cache."""
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    return Alone(prompt, httpx.post(f"{server.url}/completion", json=body, timeout=60).json()["tokens"])


async def ask(http: httpx.AsyncClient, known: Alone, tokens: int, leave_after: int | None) -> str:
    """One streamed request, compared with the answer alone; how it ended. leave_after: events that are read first."""
    got: list[int] = []
    body = {"prompt": known.prompt, "n_predict": tokens, "temperature": 0, "stream": True}
    async with http.stream("POST", "/completion", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        last: dict[str, Any] = {}
        events = 0
        async for line in answer.aiter_lines():
            if events == leave_after:
                break
            if line:
                last = json.loads(line.removeprefix("data: "))
                assert "error" not in last, last
                got += last["tokens"]
                events += 1
    expected = known.tokens[:tokens]
    different = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    assert different is None, f"token {different}: {got} instead of {expected}, a prompt of {len(known.prompt)}"
    if not last.get("stop"):
        return "left"
    assert len(got) == len(expected) == last["tokens_predicted"], (got, expected)
    return "finished"


async def crowd(
    server: Running, answers: list[Alone], clients: int, seconds: float, seed: int
) -> tuple[Counter[str], Counter[str]]:
    """Let clients ask one request after another; (how the requests ended, the most that was seen at once)."""
    ends: Counter[str] = Counter()
    peaks: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def client(http: httpx.AsyncClient, number: int) -> None:
        randomly = random.Random(f"{seed} {number}")
        while time.monotonic() < until:
            known = randomly.choice(answers)
            most = len(known.tokens)
            tokens, leaves = randomly.randint(most // 2, most), randomly.random() < LEAVES
            ends[await ask(http, known, tokens, randomly.randrange(tokens) if leaves else None)] += 1

    async def watch(http: httpx.AsyncClient) -> None:
        while True:
            assert (await http.get("/health")).status_code == 200
            status = (await http.get("/stratakv/status")).json()
            assert sum(status[f"pages_{kind}"] for kind in ("used", "free", "cached")) == capacity(server)
            for name in ("running", "queued", "pages_used"):
                peaks[name] = max(peaks[name], status[name])
            await asyncio.sleep(0.2)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
        watcher = asyncio.ensure_future(watch(http))
        await asyncio.gather(*(client(http, number) for number in range(clients)))
        assert not watcher.done(), watcher.result()
        watcher.cancel()
    return ends, peaks


def capacity(server: Running) -> int:
    return sum(pool.capacity for pool in server.engine.cache.pools)


def soak(profile: str, *, clients: int, seconds: float, different: int, longest: int, pages: int, seed: int = 5) -> str:
    """Everything above, and what must hold afterwards; a line of numbers. different: prompts; longest: tokens of an answer."""
    page_bytes = PAGE_TOKENS * resolve(profile, embedded().geometry).bytes_per_token
    limits = Limits(clients, 1024, pages * page_bytes, deterministic=profile == "f32")
    with running(profile=profile, limits=limits) as server:
        chosen = prompts(different, random.Random(seed))
        answers = [alone(server, prompt, longest) for prompt in chosen]
        before = server.engine.snapshot()
        assert (before.pages_used, before.pages_free) == (0, capacity(server)) == (0, pages)
        ends, peaks = asyncio.run(crowd(server, answers, clients, seconds, seed))
        server.wait_idle(30)

        after = server.engine.snapshot()
        assert (after.pages_used, after.used_bytes, after.running, after.queued) == (0, 0, 0, 0)
        assert after.pages_free + after.pages_cached == pages
        assert sorted(server.engine.scheduler.free_slots) == list(range(clients))
        counters = after.counters
        assert (counters.failed, counters.refused) == (0, 0)
        assert counters.finished + counters.cancelled == counters.requests == different + ends.total()
        assert counters.preempted > 0, "the cache was large enough: nothing was tried"
        assert counters.cached_tokens > 0 and counters.cancelled > 0
        assert ends["finished"] >= clients // 2 and ends["left"] >= clients // 8
        return f"{dict(ends)}, at most {dict(peaks)}, {counters}"


@pytest.mark.parametrize("profile", ["f32", "turbo4"])
def test_a_crowd_that_comes_and_goes(profile):
    print(soak(profile, clients=24, seconds=2, different=9, longest=24, pages=14))


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["f32", "turbo4"])
def test_a_crowd_that_comes_and_goes_for_minutes(profile):
    print(soak(profile, clients=64, seconds=120, different=40, longest=100, pages=64))
