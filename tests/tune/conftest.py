from __future__ import annotations

import functools

import pytest

from stratakv.engine.load import LoadedModel, load_model
from stratakv.tune import effort
from stratakv.tune.effort import Effort

load_once = functools.cache(load_model)

TINY = Effort(
    gradient_contexts=4,
    draws=1,
    ablated_types=1,
    ablation_batches=1,
    pairs=1,
    rounds=1,
    drawn=2,
    alternatives=1,
    remeasure_batches=1,
    search_batches=1,
    swaps=1,
    neighbours=2,
    fidelity=5,
    fidelity_contexts=1,
    validate_contexts=4,
)


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return load_once("embedded")


@pytest.fixture
def tiny_effort(monkeypatch: pytest.MonkeyPatch) -> Effort:
    """`--effort quick` that measures next to nothing."""
    monkeypatch.setitem(effort.EFFORTS, "quick", TINY)
    return TINY
