"""The engine's state as plain data, for pages, metrics and tests."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from stratakv.pages.layout import PAGE_TOKENS
from stratakv.serve.request import Counters, EngineSnapshot, LayerSnapshot, SlotSnapshot
from stratakv.serve.sequence import Sequence

if TYPE_CHECKING:
    from stratakv.serve.engine import Engine

_SECONDS = 5.0


class Speed:
    """Tokens a second over the last seconds."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()

    def add(self, tokens: int) -> None:
        """So many tokens came now."""
        now = time.perf_counter()
        self._steps.append((now, tokens))
        while self._steps[0][0] < now - _SECONDS:
            self._steps.popleft()

    def now(self) -> float:
        """Tokens a second."""
        since = time.perf_counter() - _SECONDS
        recent = [(at, tokens) for at, tokens in self._steps if at >= since]
        if len(recent) < 2:
            return 0.0
        return sum(tokens for _, tokens in recent) / max(time.perf_counter() - recent[0][0], 0.1)


def take_snapshot(engine: Engine) -> EngineSnapshot:
    """Called with the engine's lock."""
    scheduler, counters = engine.scheduler, engine.counters
    running = {sequence.slot: sequence for sequence in scheduler.running}
    used_bytes = sum(g.page_bytes * p.used for g, p in zip(engine.groups, engine.pools, strict=True))
    return EngineSnapshot(
        healthy=engine.healthy,
        why=engine.failure,
        running=len(scheduler.running),
        queued=len(scheduler.waiting),
        slots=tuple(_slot(number, running.get(number)) for number in range(engine.limits.slots)),
        pages_used=sum(pool.used for pool in engine.pools),
        pages_free=sum(pool.free for pool in engine.pools),
        pages_cached=sum(pool.cached for pool in engine.pools),
        page_tokens=PAGE_TOKENS,
        cache_bytes=sum(g.page_bytes * p.capacity for g, p in zip(engine.groups, engine.pools, strict=True)),
        used_bytes=used_bytes,
        bytes_per_token=engine.profile.bytes_per_token,
        tokens_per_second=engine.speed.now(),
        counters=Counters(
            requests=counters["requests"],
            finished=counters["finished"],
            cancelled=counters["cancelled"],
            failed=counters["failed"],
            refused=counters["refused"],
            preempted=scheduler.preempted,
            prompt_tokens=counters["prompt_tokens"],
            cached_tokens=counters["cached_tokens"],
            generated_tokens=counters["generated_tokens"],
            steps=counters["steps"],
            prompt_seconds=counters["prompt_ms"] / 1e3,
            decode_seconds=counters["decode_ms"] / 1e3,
        ),
        layers=_layers(engine),
        profile=engine.profile.name,
        batching=engine.runner.batching,
        lost=engine.lost,
    )


def _slot(number: int, sequence: Sequence | None) -> SlotSnapshot:
    if sequence is None:
        return SlotSnapshot(number, "idle")
    return SlotSnapshot(
        number,
        "prompt" if sequence.in_prompt else "decode",
        sequence.id,
        sequence.prompt_tokens,
        min(sequence.computed, sequence.prompt_tokens),
        sequence.cached,
        sequence.generated,
        sequence.computed,
        sum(len(table.pages) for table in sequence.tables),
    )


def _layers(engine: Engine) -> tuple[LayerSnapshot, ...]:
    profile = engine.profile
    return tuple(
        LayerSnapshot(layer.layer, layer.role, k, v, layer.window, sum(profile.layer_bytes(ordinal)))
        for ordinal, (layer, (k, v)) in enumerate(zip(profile.geometry.kv_layers, profile.pairs, strict=True))
    )
