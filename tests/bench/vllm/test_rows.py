"""What `bench vllm` makes of times: ratios by turns, goals, the table."""

from __future__ import annotations

from typing import Any

import pytest

from stratakv.bench.vllm.rows import Answered, Visits, goals, row
from stratakv.bench.vllm.table import format_vllm

STARTED = {"blocks": 129, "block_tokens": 128}


def answered(seconds: float, first: float = 1.0, requests: int = 2, together: int = 2) -> Answered:
    return Answered(11, seconds, [first] * requests, together)


def visits(*seconds: float, far: float, long: int) -> Visits:
    """far: of decoding 8,192 tokens' answer; the first visit of it computes a prompt for 9 seconds more."""
    contexts = {8192: [answered(9 + far, 9.5, 1), answered(far + 0.5, 0.5, 1)]}
    return Visits([answered(each) for each in seconds], contexts, answered(5.0, requests=long, together=long))


STOCK = visits(2.0, 4.0, 3.0, far=2.0, long=4)
OURS = visits(1.0, 4.0, 2.0, far=0.5, long=13)


def test_decoding_begins_after_the_first_token() -> None:
    assert Answered(11, 3.0, [0.5, 1.0], 2).tokens_per_second == pytest.approx(22 / 3)
    assert Answered(11, 3.0, [1.0], 1).decoded_per_second == pytest.approx(5)


def test_ratios_are_of_the_same_turn() -> None:
    found = row("turbo4", STARTED, OURS, STOCK)
    assert found["ours"] and found["tokens_that_fit"] == 129 * 128
    assert found["times_stock"] == pytest.approx(1.5)  # the median of 2, 1 and 1.5
    assert found["tokens_per_second"] == pytest.approx(11.0) and found["ttft_ms"] == 1000
    (context,) = found["contexts"]
    assert context["times_stock"] == pytest.approx(4.0) and context["ttft_ms"] == 9500
    assert found["long"] == 13


def test_goals_are_against_stock_not_its_fp8() -> None:
    rows = [
        row("stock", STARTED, STOCK, STOCK),
        row("stock fp8", STARTED, OURS, STOCK),
        row("turbo4", STARTED, OURS, STOCK),
    ]
    found = goals(rows)
    assert [(each["limit"], each["met"]) for each in found] == [(1.0, True), (3.0, True), (1.0, True)]
    assert found[1]["measured"] == 3.25
    slow = goals([rows[0], row("f32", STARTED, visits(3.0, 5.0, 4.0, far=3.0, long=2), STOCK)])
    assert [each["met"] for each in slow] == [False, False, False]


def test_the_table_has_every_engine() -> None:
    rows = [row(cache, STARTED, each, STOCK) for cache, each in (("stock", STOCK), ("turbo4", OURS))]
    data: dict[str, Any] = {
        "machine": {"cpu": "a CPU", "torch": "2"},
        "threads": 2,
        "compiled": True,
        "vllm": "0.32.0",
        "model": "m",
        "dtype": "bfloat16",
        "cache_bytes": 2**20,
        "requests": 2,
        "prompt": 5,
        "answer": 11,
        "rows": rows,
        "goals": goals(rows),
        "notes": [],
        "warnings": [],
    }
    text = format_vllm(data)
    assert "vLLM 0.32.0 (compiled), m in bfloat16, 1 MiB of cache" in text
    lines = [line for line in text.splitlines() if line.startswith("turbo4")]
    assert "1.50" in lines[0] and "16,512" in lines[0] and lines[0].endswith("13")
    assert "8,192" in lines[1] and "4.00" in lines[1]
