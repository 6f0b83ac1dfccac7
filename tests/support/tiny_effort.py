"""An effort of tuning that measures next to nothing: every stage runs, no number means much."""

from __future__ import annotations

import functools

import pytest

from stratakv.engine.load import load_model
from stratakv.tune import effort
from stratakv.tune.effort import Effort

SHORT = ["tune", "-m", "embedded", "-c", "32", "--effort", "quick", "--types", "turbo2,turbo3,turbo4,turbo5,q8_0"]
load_once = functools.cache(load_model)

TINY = Effort(
    gradient_contexts=2,
    draws=1,
    ablated_types=1,
    ablation_batches=1,
    designed=4,
    drawn=1,
    search_batches=1,
    swaps=1,
    neighbours=1,
    validate_contexts=4,
)


def use_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--effort quick` measures next to nothing, and a model is loaded once."""
    monkeypatch.setattr("stratakv.engine.load.load_model", load_once)
    monkeypatch.setitem(effort.EFFORTS, "quick", TINY)
