from __future__ import annotations

import pytest

from stratakv.bench.serve.goals import goals
from stratakv.bench.serve.load import Completion, Load
from stratakv.bench.serve.rows import Round, loop_rows, prefix_row


def _load(tokens_per_second: float) -> Load:
    return Load((Completion(10.0, [10.5, 10.6, 10.8], 64),), 64 / tokens_per_second)


def test_rows_and_goals_of_rounds() -> None:
    visits = [
        Round(
            {1: _load(speed), 4: _load(2.4 * speed), 16: _load(4.1 * speed)},
            None,
            2.0,
            1.0,
            0.05,
            [0.01, 0.01, 0.03],
            [0.025],
        )
        for speed in (100.0, 80.0, 110.0)
    ]
    rows = [{"server": "stratakv", "profile": "turbo4", **row} for row in loop_rows(visits)]
    one, four, sixteen = rows
    assert one["tokens_per_second"] == pytest.approx(100) and one["tokens_per_second_rounds"][1] == pytest.approx(80)
    assert (one["ttft_ms_p50"], one["gap_ms_p50"]) == (pytest.approx(500), pytest.approx(150))
    assert four["tokens_per_second"] == pytest.approx(240) and sixteen["tokens_per_second"] == pytest.approx(410)
    prefix = {"server": "stratakv", "profile": "turbo4", **prefix_row(visits)}
    capacity = [{"profile": "f16", "at_once": 8}, {"profile": "turbo4", "at_once": 27}]
    found = {goal["goal"].removeprefix("turbo4: "): goal for goal in goals(rows, [prefix], capacity, 3968)}
    assert [(name, goal["met"]) for name, goal in found.items()] == [
        ("4 clients against one", False),
        ("16 clients against one", True),
        ("a beginning of 3,968 tokens seen before", True),
        ("beside a long prompt", False),
        ("sequences of 2k tokens at once in equal memory", False),
    ]
    assert found["beside a long prompt"]["measured"] == pytest.approx(2.5)
    assert found["sequences of 2k tokens at once in equal memory"]["measured"] == pytest.approx(3.375)
