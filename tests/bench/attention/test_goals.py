from __future__ import annotations

from typing import Any

import pytest

from stratakv.bench.attention.goals import goals, gpu_goals
from stratakv.bench.goals import goal_in_words


def _row(name: str, groups: int, ms: float, **more: Any) -> dict[str, Any]:
    row = {"name": name, "k": name, "v": name, "context": 32768, "q_heads": 8 * groups, "kv_heads": 8, "ms": ms}
    return {**row, "ns_per_head_row": 1e6 * ms / (32768 * 8 * groups), "peer": None, **more}


def test_goals_are_met_missed_or_unknown() -> None:
    rows = [
        _row("turbo4", 4, 1.2, share_of_read_bandwidth=0.6),
        _row("torch SDPA f32", 4, 2.0, k="f32", peer="torch", share_of_read_bandwidth=1.0),
        _row("torch GQA matmul bf16", 4, 15.0, k="bf16", peer="torch", share_of_read_bandwidth=1.0),
        _row("llama.cpp f16", 4, 6.0, peer="llama.cpp", share_of_read_bandwidth=1.0),
    ]
    words = [goal_in_words(goal) for goal in goals(rows, [], [])]
    found = goals(rows, [], [])
    assert [goal["met"] for goal in found[:5]] == [True, False, True, False, None]
    assert found[2]["measured"] == pytest.approx(12.5)  # f32 doesn't count as dense bf16
    assert found[1]["off_by"] == pytest.approx(0.2)
    assert words[0].startswith("met ")
    assert "by 20%" in words[1]
    assert words[4].startswith("unknown")
    rows.append(_row("llama.cpp f16 -fa off", 4, 3.0, peer="llama.cpp"))  # the faster of the two is the peer
    assert goals(rows, [], [])[3]["measured"] == pytest.approx(2.5)


def test_prefill_goal_is_against_the_fastest_peer() -> None:
    prefill = [
        {"name": name, "context": 8192, "queries": 8192, "ms": ms, "peer": peer}
        for name, ms, peer in [("turbo4", 130.0, None), ("slow", 200.0, "torch"), ("fast", 100.0, "torch")]
    ]
    goal = next(goal for goal in goals([], prefill, []) if goal["goal"].startswith("prefill of 8k"))
    assert goal["measured"] == pytest.approx(1.3)
    assert goal["met"] is False


def test_goals_of_a_gpu() -> None:
    shape = {"batch": 8, "context": 131072, "q_heads": 32, "kv_heads": 8}
    rows = [
        {**shape, "name": "turbo4", "ms": 1.0, "share_of_copy_bandwidth": 0.6},
        {**shape, "name": "torch SDPA bf16", "ms": 3.2, "share_of_copy_bandwidth": 0.9},
        {
            **shape,
            "name": "turbo3",
            "batch": 1,
            "ms": 0.1,
            "share_of_copy_bandwidth": 0.9,
        },  # another batch says nothing
    ]
    prefill = [{"name": "turbo4", "context": 32768, "queries": 32768, "ms": 2.4, "sdpa_ms": 2.0}]
    found = gpu_goals(rows, prefill, [{"name": "turbo4", "share_of_copy_bandwidth": 0.5}])
    assert [goal["met"] for goal in found] == [False, True, None, False, True]
    assert found[1]["measured"] == pytest.approx(3.2) and found[3]["measured"] == pytest.approx(1.2)
