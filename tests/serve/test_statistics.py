"""Counts since the start, and tokens a second over the last seconds."""

from __future__ import annotations

import pytest

from stratakv.serve import statistics
from stratakv.serve.request import Finish
from stratakv.serve.statistics import Speed, Statistics


def finish(reason: str, prompt_ms: float, decode_ms: float) -> Finish:
    return Finish(10, 4, 5, prompt_ms, decode_ms, reason=reason)  # type: ignore[arg-type]


def test_counts_and_times() -> None:
    counted = Statistics()
    for _ in range(3):
        counted.count("requests")
    counted.add_step(100, 2)
    counted.add_step(0, 3)
    counted.add_finish(finish("stop", 1500.0, 250.4))
    counted.add_finish(finish("error", 0.6, 0.6))
    found = counted.counters(preempted=7)
    assert (found.requests, found.finished, found.failed, found.preempted, found.refused) == (3, 1, 1, 7, 0)
    assert (found.steps, found.prompt_tokens, found.generated_tokens, found.cached_tokens) == (2, 100, 5, 8)
    assert found.prompt_seconds == pytest.approx(1.5006) and found.decode_seconds == pytest.approx(0.251)
    counted.clear()
    assert counted.counters(0) == Statistics().counters(0)


def test_speed_is_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(statistics.time, "perf_counter", lambda: now)
    speed = Speed()
    assert speed.now() == 0.0
    for _ in range(40):
        speed.add(10)
        now += 0.1
    assert speed.now() == pytest.approx(100, rel=0.05)
    now += 20
    assert speed.now() == 0.0
