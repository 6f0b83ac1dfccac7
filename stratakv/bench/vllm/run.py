"""`stratakv bench vllm`: profiles inside vLLM beside vLLM as it ships, in the same memory, taking turns."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratakv.bench.result import Report, quiet, result
from stratakv.bench.timing import load_average
from stratakv.bench.vllm.rows import FP8, STOCK, Answered, Visits, goals, row
from stratakv.bench.worker import Worker
from stratakv.engine.describe import ModelDescription, describe_model
from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import resolve

SCHEMA = "stratakv/bench-vllm/1"
LONG_TOKENS = 4096  # of the sequences that are counted
_BATCH_TOKENS = 2048  # of a step, in all engines
_ENGINE = Path(__file__).with_name("engine.py")

Row = dict[str, Any]


@dataclass(frozen=True)
class VllmSettings:
    """What to measure. python: an interpreter with vLLM and stratakv. model: a directory in Hugging Face format.

    requests, prompt, answer: how many requests at once, and their tokens. contexts: tokens of one sequence, the far_answer
    tokens of its answer among them. long: sequences of LONG_TOKENS that stock vLLM's cache is to hold; all caches have its
    bytes. eager: without vLLM's compiled graphs.
    """

    python: str
    model: str
    profiles: tuple[str, ...] = ("turbo4",)
    requests: int = 16
    prompt: int = 448
    answer: int = 64
    contexts: tuple[int, ...] = (8192,)
    far_answer: int = 24
    long: int = 4
    rounds: int = 3
    threads: int = 1
    eager: bool = False
    seed: int = 1


def bench_vllm(settings: VllmSettings, *, command: str = "", report: Report = quiet) -> Row:
    """Measure; returns the data of `--json`, schema "stratakv/bench-vllm/1". UserError where an engine can't be started, but
    for stock vLLM's fp8 cache, which is then left out and named."""
    model = described(settings.model)
    for profile in settings.profiles:
        resolve(profile, model.geometry)
    load, size = load_average(), cache_bytes(settings, model)
    with ExitStack() as stack:
        engines: dict[str, Worker] = {}
        started: dict[str, Row] = {}
        notes: list[str] = []
        for cache in (STOCK, FP8, *settings.profiles):
            report(f"{cache}: starting")
            engine = stack.enter_context(Worker([settings.python, "-P", str(_ENGINE)], f"vLLM, {cache}", _WITHOUT))
            try:
                started[cache] = engine.ask(do="load", **_load(settings, cache, size))
            except UserError as error:
                if cache != FP8:
                    raise
                notes.append(f"{FP8} was left out, it doesn't run here: {error}")
                continue
            engines[cache] = engine
        visits = _measured(settings, engines, started, model, report)
    rows = [row(cache, started[cache], visits[cache], visits[STOCK]) for cache in engines]
    measured = {
        "model": model.name,
        "dtype": "bfloat16",
        "threads": settings.threads,
        "compiled": not settings.eager,
        "vllm": started[STOCK]["version"],
        "cache_bytes": size,
        "requests": settings.requests,
        "prompt": settings.prompt,
        "answer": settings.answer,
        "rounds": settings.rounds,
        "rows": rows,
        "goals": goals(rows),
    }
    return result(SCHEMA, measured, command=command, load=load, notes=[*notes, *_notes(settings, model)])


def described(source: str) -> ModelDescription:
    """The model. UserError for a GGUF file, which vLLM doesn't read."""
    model = describe_model(source)
    if model.gguf is not None:
        raise UserError(
            f"-m {source}: vLLM reads directories in Hugging Face format: make one with tools/gguf_to_hf.py and give that"
        )
    return model


def cache_bytes(settings: VllmSettings, model: ModelDescription) -> int:
    """Bytes in which stock vLLM holds `long` sequences, or the requests or the longest context where these are more, and the
    block that it keeps for itself."""
    each = settings.prompt + settings.answer
    wanted = (settings.long * LONG_TOKENS, settings.requests * _whole(each), *map(_whole, settings.contexts))
    return (max(wanted) + PAGE_TOKENS) * resolve("bf16", model.geometry).bytes_per_token


def _whole(tokens: int) -> int:
    """In whole blocks."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def _load(settings: VllmSettings, cache: str, size: int) -> Row:
    longest = max(settings.prompt + settings.answer, LONG_TOKENS * (settings.long > 0), *settings.contexts)
    engine = {
        "dtype": "bfloat16",
        "max_model_len": longest,
        # positions that the model was never trained for take the same time
        "hf_overrides": {"max_position_embeddings": longest},
        "max_num_seqs": 64,
        "max_num_batched_tokens": _BATCH_TOKENS,
        "kv_cache_memory_bytes": size,
        "enforce_eager": settings.eager,
    }
    if cache == FP8:
        engine["kv_cache_dtype"] = "fp8"
    profile = None if cache in (STOCK, FP8) else cache
    return {"model": settings.model, "settings": engine, "profile": profile, "threads": settings.threads}


def _measured(
    settings: VllmSettings,
    engines: Mapping[str, Worker],
    started: Mapping[str, Row],
    model: ModelDescription,
    report: Report,
) -> dict[str, Visits]:
    """Every engine's, each prompt asked of all of them before the next one."""
    draw = random.Random(settings.seed)
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    visits = {cache: Visits() for cache in engines}

    def prompts(count: int, tokens: int) -> list[list[int]]:
        return [[draw.randrange(vocabulary) for _ in range(tokens)] for _ in range(count)]

    def asked(what: str, asked_of: list[list[int]], tokens: int) -> Iterator[tuple[str, Answered]]:
        for cache, engine in engines.items():
            answer = Answered(tokens, **engine.ask(do="answer", prompts=asked_of, tokens=tokens))
            report(f"{cache}: {what}: {answer.seconds:.1f} s")
            yield cache, answer

    report("measuring")
    list(asked("first calls", prompts(2, 64), 4))
    for _ in range(settings.rounds):
        for cache, answer in asked("requests", prompts(settings.requests, settings.prompt), settings.answer):
            visits[cache].requests.append(answer)
    for context in settings.contexts:
        one = prompts(1, context - settings.far_answer)
        for _ in range(
            settings.rounds + 1
        ):  # the first time computes the prompt, later ones find it in the prefix cache
            for cache, answer in asked(f"at {context:,} tokens", one, settings.far_answer):
                visits[cache].contexts.setdefault(context, []).append(answer)
    if settings.long:
        # an answer fills the last block, so that all prompts are in the cache before the first one ends
        for cache, engine in engines.items():
            count = (started[cache]["blocks"] - 1) * PAGE_TOKENS // LONG_TOKENS
            many = prompts(count, LONG_TOKENS - PAGE_TOKENS)
            answer = Answered(PAGE_TOKENS, **engine.ask(do="answer", prompts=many, tokens=PAGE_TOKENS))
            report(f"{cache}: {answer.together} of {count} sequences of {LONG_TOKENS:,} tokens at once")
            visits[cache].long = answer
    return visits


def _notes(settings: VllmSettings, model: ModelDescription) -> Iterator[str]:
    yield (
        f"{settings.requests} requests at once, prompts of {settings.prompt} random tokens that are not in the prefix cache, "
        f"greedy answers of {settings.answer}; engines without a server, in processes of their own, taking turns"
    )
    yield (
        f"at a context: one sequence, decoding alone, medians of {settings.rounds}; its prompt was computed once, which is the "
        "time to its first token"
    )
    trained = int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", 0) or 0)
    if beyond := [context for context in settings.contexts if context > trained]:
        yield f"{model.name} was made for {trained:,} tokens: at {max(beyond):,} its speed is measured, not its words"


_WITHOUT = ("GOMP_SPINCOUNT",)  # what this process's stratakv sets for torch's OpenMP
