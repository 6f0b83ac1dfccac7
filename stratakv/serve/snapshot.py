"""The engine's state as plain data, for pages, metrics and tests."""

from __future__ import annotations

from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile
from stratakv.serve.paged_cache import PagedCache
from stratakv.serve.request import EngineSnapshot, KindSnapshot, LayerSnapshot, Loss, SlotSnapshot
from stratakv.serve.scheduler import Scheduler
from stratakv.serve.sequence import Sequence
from stratakv.serve.statistics import Statistics


def take_snapshot(
    cache: PagedCache,
    scheduler: Scheduler,
    statistics: Statistics,
    *,
    failure: str | None,
    healthy: bool,
    lost: tuple[Loss, ...],
) -> EngineSnapshot:
    """Called with the engine's lock."""
    running = {sequence.slot: sequence for sequence in scheduler.running}
    return EngineSnapshot(
        healthy=healthy,
        why=failure,
        running=len(scheduler.running),
        queued=len(scheduler.waiting),
        slots=tuple(_slot(number, running.get(number)) for number in range(len(cache.slots))),
        pages_used=sum(pool.used for pool in cache.pools),
        pages_free=sum(pool.free for pool in cache.pools),
        pages_cached=sum(pool.cached for pool in cache.pools),
        kinds=_kinds(cache),
        page_tokens=PAGE_TOKENS,
        cache_bytes=cache.nbytes,
        used_bytes=cache.used_bytes,
        bytes_per_token=cache.profile.bytes_per_token,
        tokens_per_second=statistics.speed.now(),
        counters=statistics.counters(scheduler.preempted),
        layers=_layers(cache.profile),
        profile=cache.profile.name,
        batching=cache.runner.batching,
        lost=lost,
    )


def _kinds(cache: PagedCache) -> tuple[KindSnapshot, ...]:
    found = []
    for kind in ("whole", "fine", "sealed"):
        both = [(g, p) for g, p in zip(cache.groups, cache.pools, strict=True) if g.part == kind]
        if both:
            pools = [pool for _, pool in both]
            nbytes = sum(group.page_bytes * pool.capacity for group, pool in both)
            counts = (
                sum(pool.used for pool in pools),
                sum(pool.free for pool in pools),
                sum(pool.cached for pool in pools),
            )
            found.append(KindSnapshot(kind, *counts, nbytes))
    return tuple(found)


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


def _layers(profile: Profile) -> tuple[LayerSnapshot, ...]:
    """As they are stored: a layer whose spans hold all that its window touches has the finer types alone."""
    geometry = profile.geometry.kv_layers
    layers = [(layer, storage.for_layer(layer)) for layer, storage in zip(geometry, profile.storages, strict=True)]
    return tuple(
        LayerSnapshot(
            layer.layer,
            layer.role,
            storage.k.name,
            storage.v.name,
            layer.window,
            sum(storage.token_bytes(layer)),
            storage.spans.recent,
            storage.spans.first,
            storage.spans.type if storage.spans else None,
        )
        for layer, storage in layers
    )
