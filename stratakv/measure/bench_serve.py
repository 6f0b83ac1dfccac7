"""`stratakv bench serve`: a server under load, as its clients see it: throughput, time to first token, time between tokens.

Every profile gets a server process of its own on the same weights, and llama-cpp-python's server another one.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stratakv import __version__
from stratakv.cache.layout import PAGE_TOKENS
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_tokenizer
from stratakv.kernels.native import machine
from stratakv.measure.corpus import read_text
from stratakv.measure.serve_goals import goals
from stratakv.measure.serve_load import Client, closed_loop, open_loop
from stratakv.measure.serve_process import llama_server, our_server
from stratakv.measure.timing import load_average, load_warnings
from stratakv.profile import Profile, resolve

SCHEMA = "stratakv/bench-serve/1"
PREFIX_TOKENS = 3968  # with the question and the answer within a model's 4,096
CAPACITY_TOKENS = 2048
_ANSWER = 64
_SHORT = 48
_MARGIN = 16  # a text's tokens may be a few more when they are read again

Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to run. clients: at once; each: requests of every client; rate, count: of the open loop (0 requests: none);
    capacity_bytes: cache memory in which sequences are counted; llama_python: an interpreter with llama-cpp-python[server]."""

    model: str
    text: str
    profiles: tuple[str, ...] = ("f16", "turbo4")
    clients: tuple[int, ...] = (1, 4, 16)
    each: int = 4
    rate: float = 2.0
    count: int = 16
    threads: int = 2
    seed: int = 1
    capacity_bytes: int = 128 * 2**20
    llama_python: str | None = None


def bench_serve(settings: Settings, *, command: str, report: Report) -> dict[str, Any]:
    """Run everything and return a "stratakv/bench-serve/1"; UserError for what can't be started."""
    started = machine()
    load = load_average()
    model = describe_model(settings.model)
    profiles = [resolve(text, model.geometry, fingerprint=model.fingerprint) for text in settings.profiles]
    texts = _Texts(read_text(settings.text).content, load_tokenizer(model), settings.seed)
    rows: list[dict[str, Any]] = []
    prefixes: list[dict[str, Any]] = []
    capacity: list[dict[str, Any]] = []
    for text, profile in zip(settings.profiles, profiles, strict=True):
        options = ["-np", str(max(*settings.clients, 4)), "-c", str(_context(model.geometry.context))]
        options += ["--cache-memory", _kib(_room(profile, settings))]
        report(f"{profile.name}: load")
        with our_server(settings.model, text, settings.threads, options) as url:
            found = asyncio.run(_load(url, settings, texts, whole=True))
        rows += [{"server": "stratakv", "profile": profile.name, **row} for row in found[0]]
        prefixes.append({"server": "stratakv", "profile": profile.name, **found[1]})
        report(f"{profile.name}: sequences of {CAPACITY_TOKENS:,} tokens in {settings.capacity_bytes / 2**20:.0f} MiB")
        capacity.append({"profile": profile.name, **_capacity(settings, text, profile, texts)})
    if settings.llama_python and model.gguf:
        report("llama-cpp-python's server, f16: load")
        context = _context(model.geometry.context)
        with llama_server(settings.llama_python, model.path, context, settings.threads) as url:
            found = asyncio.run(_load(url, settings, texts, whole=False))
        rows += [{"server": "llama-cpp-python", "profile": "f16", **row} for row in found[0]]
        prefixes.append({"server": "llama-cpp-python", "profile": "f16", **found[1]})
    return {
        "schema": SCHEMA,
        "stratakv": __version__,
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "rows": rows,
        "prefix": prefixes,
        "capacity": capacity,
        "goals": goals(rows, prefixes, capacity),
        "threads": settings.threads,
        "seed": settings.seed,
        "command": command,
        "machine": started,
        "load_average": load,
        "warnings": load_warnings(load),
        "notes": list(_notes(settings)),
    }


class _Texts:
    """Prompts from a text, seeded. Tokens are ours, the same prompts go to every server."""

    def __init__(self, text: str, tokenizer: Any, seed: int) -> None:
        self._tokenizer, self._seed = tokenizer, seed
        self._ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def short(self, number: int) -> str:
        """A short prompt of its own."""
        return self.piece(number, _SHORT)

    def piece(self, number: int, tokens: int) -> str:
        """About so many tokens, from a place of its own; no two begin alike."""
        start = random.Random(f"{self._seed}/{number}").randrange(max(1, len(self._ids) - tokens))
        text: str = self._tokenizer.decode(self._ids[start : start + tokens])
        return f"{number}: {text}"


async def _load(
    url: str, settings: Settings, texts: _Texts, *, whole: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of closed and open loops, and what a long prompt does. whole: also what only ours is asked for."""
    rows = []
    async with Client(url) as client:
        await client.complete(texts.short(-1), 8)  # whatever is made at the first request
        for count in settings.clients:
            load = await closed_loop(client, count, settings.each, texts.short, _ANSWER)
            rows.append({"loop": "closed", "clients": count, "rate": None, **load.row()})
        if settings.count:
            shifted = lambda number: texts.short(10_000 + number)  # noqa: E731 (a prompt that no closed loop has sent)
            load = await open_loop(client, settings.rate, settings.count, settings.seed, shifted, _ANSWER)
            rows.append({"loop": "open", "clients": None, "rate": settings.rate, **load.row()})
        prefix = await _prefix(client, texts)
        if whole:
            prefix |= await _beside(client, texts)
    return rows, prefix


async def _prefix(client: Client, texts: _Texts) -> dict[str, Any]:
    """Time to the first token with a long beginning that is new each time, and with one that was seen before."""
    new, seen = [], []
    shared = texts.piece(20_000, PREFIX_TOKENS)
    for turn in range(3):
        other = texts.piece(20_001 + turn, PREFIX_TOKENS)
        new.append((await client.complete(other, 4)).first)
        await client.complete(shared, 4)
        seen.append((await client.complete(shared + texts.piece(turn, 20), 4)).first)
    new_ms, seen_ms = 1e3 * statistics.median(new), 1e3 * statistics.median(seen)
    return {"tokens": PREFIX_TOKENS, "ttft_new_ms": new_ms, "ttft_seen_ms": seen_ms, "times": new_ms / seen_ms}


async def _beside(client: Client, texts: _Texts) -> dict[str, Any]:
    """Time between the tokens of a running request, alone, and while a long prompt is computed beside it."""
    prompt = texts.piece(20_099, PREFIX_TOKENS)
    began = asyncio.Event()
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == 100:
            began.set()

    running = asyncio.create_task(client.complete(texts.short(30_000), 1500, count))
    await began.wait()
    long = await client.complete(prompt, 1)
    answer = await running
    end = long.pieces[0]
    alone = [b - a for a, b in zip(answer.pieces, answer.pieces[1:], strict=False) if b < long.sent]
    beside = [b - a for a, b in zip(answer.pieces, answer.pieces[1:], strict=False) if a >= long.sent and b <= end]
    alone_ms, beside_ms = 1e3 * statistics.median(alone), 1e3 * statistics.median(beside or [end - long.sent])
    return {
        "gap_alone_ms": alone_ms,
        "gap_beside_ms": beside_ms,
        "gap_beside_ms_max": 1e3 * max(beside or [end - long.sent]),
        "gap_times": beside_ms / alone_ms,
        "ttft_beside_ms": 1e3 * long.first,
    }


def _capacity(settings: Settings, text: str, profile: Profile, texts: _Texts) -> dict[str, Any]:
    """How many sequences of CAPACITY_TOKENS ran at once in the given cache memory, none of them waiting or preempted."""
    per_sequence = CAPACITY_TOKENS * profile.bytes_per_token
    wanted = settings.capacity_bytes // per_sequence
    options = ["-np", str(wanted + 4), "-c", str(CAPACITY_TOKENS), "--cache-memory", _kib(settings.capacity_bytes)]
    with our_server(settings.model, text, settings.threads, options) as url:
        most, preempted = asyncio.run(_at_once(url, texts, wanted))
    return {"cache_bytes": settings.capacity_bytes, "tokens": CAPACITY_TOKENS, "asked": wanted, "at_once": most} | {
        "preempted": preempted
    }


async def _at_once(url: str, texts: _Texts, wanted: int) -> tuple[int, int]:
    most = preempted = 0
    async with Client(url) as client:
        # all but the last page of a sequence is prompt, so that all of them are there before the first one ends
        prompts = [texts.piece(40_000 + n, CAPACITY_TOKENS - PAGE_TOKENS - _MARGIN) for n in range(wanted)]
        running = [asyncio.create_task(client.complete(prompt, PAGE_TOKENS)) for prompt in prompts]
        while not all(task.done() for task in running):
            status = await client.get("/stratakv/status")
            at_work = sum(slot["state"] != "idle" for slot in status["slots"])
            most = max(most, at_work if status["queued"] == 0 else 0)
            preempted = status["counters"]["preempted"]
            await asyncio.sleep(0.05)
        await asyncio.gather(*running)
    return most, preempted


def _kib(nbytes: int) -> str:
    return f"{nbytes // 1024}KiB"


def _context(trained: int) -> int:
    return trained or 4096


def _room(profile: Profile, settings: Settings) -> int:
    """Cache memory in which no run of ours has to wait for pages."""
    tokens = (max(settings.clients) + 8) * 1024 + 8 * (PREFIX_TOKENS + 1024)
    return tokens * profile.bytes_per_token


def _notes(settings: Settings) -> Iterator[str]:
    yield (
        f"prompts of about {_SHORT} tokens and answers of {_ANSWER}, greedy, streamed over HTTP on this machine, whose cores "
        "the load generator shares"
    )
    yield f"prefix: a prompt of about {PREFIX_TOKENS:,} tokens, new each time, and seen before with another end; medians of 3"
    yield "gaps: between pieces of text as they arrive; a piece may hold more than one token where a character needs several"
    if settings.llama_python is None:
        yield "llama-cpp-python's server was not measured: give --llama-python with llama-cpp-python[server]"
