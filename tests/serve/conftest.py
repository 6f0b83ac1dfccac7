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


@pytest.fixture
def engines(loaded: LoadedModel) -> Iterator[Callable[..., Engine]]:
    """Makes and starts engines: `engines("turbo4", slots=8)`; `model=` for another model."""
    made: list[Engine] = []

    def make(profile: str, *, model: LoadedModel | None = None, cache_bytes: int = 2**26, **limits: Any) -> Engine:
        chosen = model or loaded
        limits = {"context": 1024, **limits, "cache_bytes": cache_bytes}
        engine = Engine(chosen, resolve(profile, chosen.geometry), Limits(**limits))
        engine.start()
        made.append(engine)
        return engine

    yield make
    for engine in made:
        asyncio.run(engine.stop())
