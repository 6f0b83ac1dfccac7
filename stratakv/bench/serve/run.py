"""`stratakv bench serve`: a server under load, as its clients see it: throughput, time to first token, time between tokens.

Every profile gets a server process of its own on the same weights, and llama-cpp-python's server another one; they take turns.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratakv.bench.result import Report, result
from stratakv.bench.serve.goals import goals
from stratakv.bench.serve.load import Client, Completion, closed_loop, open_loop
from stratakv.bench.serve.process import llama_server, our_server
from stratakv.bench.serve.rows import Round, loop_rows, prefix_row
from stratakv.bench.timing import load_average
from stratakv.engine.describe import ModelDescription, describe_model
from stratakv.engine.load import load_tokenizer
from stratakv.errors import UserError
from stratakv.measure.corpus import read_text
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile, resolve

SCHEMA = "stratakv/bench-serve/1"
CONTEXT = 4096  # of every server
CAPACITY_TOKENS = 2048
_ANSWER = 64
_SHORT = 48
_QUESTION = 20  # tokens after a shared beginning
_MARGIN = 16  # a text's tokens may be a few more when they are read again


@dataclass(frozen=True)
class ServeSettings:
    """What to run. clients: at once; each: requests of every client; rate, count: of the open loop (0 requests: none);
    prefix: tokens of a shared beginning; sequences: of f16, whose memory the others get too (0: not counted);
    llama_python: an interpreter with llama-cpp-python[server]."""

    model: str
    text: str
    profiles: tuple[str, ...] = ("f16", "turbo4")
    clients: tuple[int, ...] = (1, 4, 16)
    each: int = 2
    rounds: int = 3
    rate: float = 2.0
    count: int = 16
    prefix: int = 3968
    sequences: int = 8
    threads: int = 2
    seed: int = 1
    llama_python: str | None = None


@dataclass(frozen=True)
class _Server:
    """Where one is, and what it is called in the results."""

    url: str
    name: str
    profile: str

    @property
    def ours(self) -> bool:
        return self.name == "stratakv"


def bench_serve(settings: ServeSettings, *, command: str, report: Report) -> dict[str, Any]:
    """Run everything and return a "stratakv/bench-serve/1"; UserError for what can't be started."""
    load = load_average()
    model = describe_model(settings.model)
    _check(settings, model.geometry.context)
    profiles = [resolve(text, model.geometry, fingerprint=model.fingerprint) for text in settings.profiles]
    texts = _Texts(read_text(settings.text).content, load_tokenizer(model), settings.seed)
    visits: dict[tuple[str, str], list[Round]] = {}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(_ours(settings, *both)) for both in zip(settings.profiles, profiles, strict=True)
        ]
        found = [_Server(url, "stratakv", profile.name) for url, profile in zip(servers, profiles, strict=True)]
        found += [_Server(stack.enter_context(server), "llama-cpp-python", "f16") for server in _llama(settings, model)]
        for turn in range(settings.rounds):
            for server in found:
                report(f"round {turn + 1} of {settings.rounds}: {server.name}, {server.profile}")
                visit = asyncio.run(_visit(server, settings, texts, turn))
                visits.setdefault((server.name, server.profile), []).append(visit)
    rows = [
        {"server": name, "profile": profile, **row}
        for (name, profile), all_ in visits.items()
        for row in loop_rows(all_)
    ]
    prefixes = [{"server": name, "profile": profile, **prefix_row(all_)} for (name, profile), all_ in visits.items()]
    capacity = []
    for text, profile in zip(settings.profiles, profiles, strict=True) if settings.sequences else ():
        report(f"{profile.name}: sequences of {CAPACITY_TOKENS:,} tokens in the memory of {settings.sequences} of f16")
        capacity.append({"profile": profile.name, **_capacity(settings, text, profile, texts)})
    measured = {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "prefix_tokens": settings.prefix,
        "rows": rows,
        "prefix": prefixes,
        "capacity": capacity,
        "goals": goals(rows, prefixes, capacity, settings.prefix),
        "threads": settings.threads,
        "seed": settings.seed,
    }
    return result(SCHEMA, measured, command=command, load=load, notes=_notes(settings, model))


def _check(settings: ServeSettings, trained: int) -> None:
    longest = CONTEXT - _QUESTION - 2 * _MARGIN
    if not PAGE_TOKENS < settings.prefix <= longest:
        raise UserError(f"--prefix {settings.prefix}: it must be {PAGE_TOKENS + 1} to {longest:,} tokens")
    if 0 < trained < CONTEXT:
        raise UserError(f"{settings.model} has a context of {trained:,}: bench serve needs {CONTEXT:,} tokens")


def _ours(settings: ServeSettings, text: str, profile: Profile) -> Any:
    """A server with slots and pages for every run, so that none of them waits."""
    slots = max(*settings.clients, 4)
    tokens = (slots + 8) * 1024 + 2 * CONTEXT
    options = [
        "-np",
        str(slots),
        "-c",
        str(CONTEXT),
        "--cache-memory",
        f"{tokens * profile.bytes_per_token // 1024}KiB",
    ]
    return our_server(settings.model, text, settings.threads, options)


def _llama(settings: ServeSettings, model: ModelDescription) -> Iterator[Any]:
    if settings.llama_python and model.gguf:
        yield llama_server(settings.llama_python, Path(model.path), CONTEXT, settings.threads)


class _Texts:
    """Prompts from a text, seeded. Tokens are ours, the same prompts go to every server."""

    def __init__(self, text: str, tokenizer: Any, seed: int) -> None:
        self._tokenizer, self._seed = tokenizer, seed
        self._ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def piece(self, name: str, tokens: int) -> str:
        """About so many tokens, from a place of its own; no two begin alike."""
        start = random.Random(f"{self._seed} {name}").randrange(max(1, len(self._ids) - tokens))
        text: str = self._tokenizer.decode(self._ids[start : start + tokens])
        return f"{name}: {text}"


async def _visit(server: _Server, settings: ServeSettings, texts: _Texts, turn: int) -> Round:
    """One round on one server: the loops, and what a long prompt costs, new and seen, and beside a running request."""
    async with Client(server.url) as client:
        await client.complete(texts.piece(f"{turn} warm", _SHORT), 8)  # whatever is made at the first request
        closed = {}
        for count in settings.clients:
            prompts = [texts.piece(f"{turn} {count} {n}", _SHORT) for n in range(count * settings.each)]
            closed[count] = await closed_loop(client, count, settings.each, prompts.__getitem__, _ANSWER)
        opened = None
        if settings.count:
            prompts = [texts.piece(f"{turn} open {n}", _SHORT) for n in range(settings.count)]
            opened = await open_loop(
                client, settings.rate, settings.count, settings.seed + turn, prompts.__getitem__, _ANSWER
            )
        shared = texts.piece(f"{turn} shared", settings.prefix)
        new = await client.complete(shared, 4)
        seen = await client.complete(shared + texts.piece("and", _QUESTION), 4)
        visit = Round(closed, opened, settings.rate, new.first, seen.first)
        if server.ours:  # the other one computes one request at a time
            prompt = texts.piece(f"{turn} beside", settings.prefix)
            visit.alone, visit.beside = await _beside(client, texts.piece(f"{turn} running", _SHORT), prompt)
    return visit


async def _beside(client: Client, short: str, long: str) -> tuple[list[float], list[float]]:
    """Seconds between the pieces of a running request, alone, and while a long prompt is computed beside it."""
    began = asyncio.Event()
    running = Completion(0.0)

    def seen() -> None:
        if len(running.pieces) == 50:
            began.set()

    # longer than the long prompt can take; left when that is done
    task = asyncio.create_task(client.complete(short, CONTEXT - 2 * _SHORT, seen, running))
    begin = asyncio.create_task(began.wait())
    await asyncio.wait([task, begin], return_when=asyncio.FIRST_COMPLETED)
    begin.cancel()
    other = await client.complete(long, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    pairs = list(zip(running.pieces, running.pieces[1:], strict=False))
    alone = [b - a for a, b in pairs if b < other.sent]
    # a gap that has begun when the prompt comes counts
    return alone, [b - a for a, b in pairs if b > other.sent and a < other.pieces[0]]


def _capacity(settings: ServeSettings, text: str, profile: Profile, texts: _Texts) -> dict[str, Any]:
    """How many sequences of CAPACITY_TOKENS ran at once in equal cache memory, none of them waiting or preempted."""
    dense = resolve("f16", profile.geometry)
    nbytes = settings.sequences * CAPACITY_TOKENS * dense.bytes_per_token
    wanted = nbytes // (CAPACITY_TOKENS * profile.bytes_per_token)
    options = ["-np", str(wanted + 4), "-c", str(CAPACITY_TOKENS), "--cache-memory", f"{nbytes // 1024}KiB"]
    with our_server(settings.model, text, settings.threads, options) as url:
        most, preempted = asyncio.run(_at_once(url, texts, wanted))
    return {
        "cache_bytes": nbytes,
        "tokens": CAPACITY_TOKENS,
        "asked": wanted,
        "at_once": most,
        "preempted": preempted,
    }


async def _at_once(url: str, texts: _Texts, wanted: int) -> tuple[int, int]:
    """(sequences at work while none waited, at most; sequences that lost their pages to others)."""
    most = preempted = 0
    async with Client(url) as client:
        # the answer takes the last page, so that all prompts are in the cache before the first sequence ends
        prompts = [texts.piece(f"many {n}", CAPACITY_TOKENS - PAGE_TOKENS - _MARGIN) for n in range(wanted)]
        running = [asyncio.create_task(client.complete(prompt, PAGE_TOKENS)) for prompt in prompts]
        while not all(task.done() for task in running):
            status = await client.get("/stratakv/status")
            at_work = sum(slot["state"] != "idle" for slot in status["slots"])
            most = max(most, at_work if status["queued"] == 0 else 0)
            preempted = status["counters"]["preempted"]
            await asyncio.sleep(0.02)
        await asyncio.gather(*running)
    return most, preempted


def _notes(settings: ServeSettings, model: ModelDescription) -> Iterator[str]:
    yield (
        f"prompts of about {_SHORT} tokens and answers of {_ANSWER}, greedy, streamed over HTTP on this machine, whose cores "
        "the load generator shares; the brackets are the rounds' least and most"
    )
    yield f"prefix: a prompt of {settings.prefix:,} tokens, new, and seen before with another end; medians of the rounds"
    yield "gaps: between pieces of text as they arrive; a piece may hold more than one token where a character needs several"
    if settings.llama_python is None:
        yield "llama-cpp-python's server was not measured: give --llama-python with llama-cpp-python[server]"
    elif not model.gguf:
        yield "llama-cpp-python's server was not measured: the model is no GGUF file"
