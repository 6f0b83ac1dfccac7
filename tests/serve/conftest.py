"""The embedded model, loaded once, and engines over it that end with their test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stratakv.assets import judging_text
from stratakv.engine.load import LoadedModel, load_model
from stratakv.profile import resolve
from stratakv.serve.engine import Engine
from stratakv.serve.request import Limits


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return load_model("embedded")


@pytest.fixture(scope="session")
def text_ids(loaded: LoadedModel) -> list[int]:
    """Token ids of a text."""
    return loaded.tokenizer(judging_text().read_text(encoding="utf-8")).input_ids


@pytest.fixture(scope="session")
def started() -> Iterator[dict[Any, Engine]]:
    """Engines that tests share: starting one takes longer than most tests."""
    made: dict[Any, Engine] = {}
    yield made
    for engine in made.values():
        asyncio.run(engine.stop())


@pytest.fixture
def engines(loaded: LoadedModel, started: dict[Any, Engine]) -> Iterator[Callable[..., Engine]]:
    """Engines with empty caches: `engines("turbo4", slots=8)`; `model=` for another model; `own=True` for one that no other
    test gets."""
    alone: list[Engine] = []

    def make(
        profile: str, *, model: LoadedModel | None = None, own: bool = False, cache_bytes: int = 2**26, **limits: Any
    ) -> Engine:
        chosen = model or loaded
        limits = {"context": 1024, **limits, "cache_bytes": cache_bytes}
        key = (profile, *sorted(limits.items()))
        if not own and model is None and key in started:
            engine = started[key]
            asyncio.run(_clear(engine))
            return engine
        engine = Engine(chosen, resolve(profile, chosen.geometry), Limits(**limits))
        engine.start()
        if own or model is not None:
            alone.append(engine)
        else:
            started[key] = engine
        return engine

    yield make
    for engine in alone:
        asyncio.run(engine.stop())


async def _clear(engine: Engine) -> None:
    def clear() -> None:
        assert all(pool.used == 0 for pool in engine.cache.pools), "an earlier test left pages in use"
        for pool in engine.cache.pools:
            pool.clear_cached()
        engine.statistics.clear()

    await engine.between_steps(clear)
