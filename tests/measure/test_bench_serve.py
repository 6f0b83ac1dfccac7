"""A small load on a real server process, and what is made of many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stratakv.cli.main import main
from stratakv.errors import UserError
from stratakv.measure.serve_goals import goals
from stratakv.measure.serve_load import Answer, Load
from stratakv.measure.serve_process import our_server
from stratakv.measure.serve_rows import Visit, loop_rows, prefix_row


def test_two_clients_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "r.json"
    words = [
        "--profile",
        "turbo4",
        "--clients",
        "1,2",
        "--each",
        "1",
        "--rounds",
        "1",
        "--requests",
        "2",
        "--rate",
        "20",
    ]
    words += ["--prefix", "700", "--sequences", "1", "-t", "1", "--json", str(results)]
    assert main(["bench", "serve", *words]) == 0
    data = json.loads(results.read_text())
    assert data["schema"] == "stratakv/bench-serve/1"
    assert [(row["loop"], row["clients"], row["requests"]) for row in data["rows"]] == [
        ("closed", 1, 1),
        ("closed", 2, 2),
        ("open", None, 2),
    ]
    for row in data["rows"]:
        assert row["tokens"] == 64 * row["requests"]
        assert 0 < row["gap_ms_p50"] <= row["gap_ms_p99"] and 0 < row["ttft_ms_p50"] <= row["ttft_ms_p99"]
        assert row["tokens_per_second"] > 0
    (prefix,) = data["prefix"]
    assert prefix["ttft_new_ms"] > prefix["ttft_seen_ms"] > 0 and prefix["gap_times"] > 0
    (counted,) = data["capacity"]  # 16 bits of f16 against 4.125
    assert (counted["asked"], counted["at_once"], counted["preempted"]) == (3, 3, 0)
    assert {goal["goal"]: goal["measured"] for goal in data["goals"]}["turbo4: 16 clients against one"] is None
    out = capsys.readouterr().out
    assert "2 at once" in out and "20 a second" in out and "goals" in out


@pytest.mark.parametrize(
    "words",
    [
        ["--profile", "turbo9"],
        ["-m", "/nowhere.gguf"],
        ["--clients", "0"],
        ["--clients", "500"],
        ["--rate", "0"],
        ["--prefix", "5000"],
        ["--sequences", "-1"],
        ["--llama-python", "/nowhere"],
    ],
)
def test_mistakes_end_before_anything_runs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_server_that_ends_says_why() -> None:
    with (
        pytest.raises(UserError, match=r"ended with code 2.*--parallel 0"),
        our_server("embedded", "f16", 1, ["-np", "0"]),
    ):
        pass


def _load(tokens_per_second: float) -> Load:
    return Load((Answer(10.0, [10.5, 10.6, 10.8], 64),), 64 / tokens_per_second)


def test_rows_and_goals_of_rounds() -> None:
    visits = [
        Visit({1: _load(speed), 16: _load(4 * speed)}, None, 2.0, 1.0, 0.05, [0.01, 0.01, 0.03], [0.025])
        for speed in (100.0, 80.0, 110.0)
    ]
    rows = [{"server": "stratakv", "profile": "turbo4", **row} for row in loop_rows(visits)]
    one, sixteen = rows
    assert one["tokens_per_second"] == pytest.approx(100) and one["tokens_per_second_rounds"][1] == pytest.approx(80)
    assert (one["ttft_ms_p50"], one["gap_ms_p50"]) == (pytest.approx(500), pytest.approx(150))
    assert sixteen["tokens_per_second"] == pytest.approx(400)
    prefix = {"server": "stratakv", "profile": "turbo4", **prefix_row(visits)}
    capacity = [{"profile": "f16", "at_once": 8}, {"profile": "turbo4", "at_once": 27}]
    found = {goal["goal"].removeprefix("turbo4: "): goal for goal in goals(rows, [prefix], capacity, 3968)}
    assert [(name, goal["met"]) for name, goal in found.items()] == [
        ("16 clients against one", True),
        ("a beginning of 3,968 tokens seen before", True),
        ("beside a long prompt", False),
        ("sequences of 2k tokens at once in equal memory", False),
    ]
    assert found["beside a long prompt"]["measured"] == pytest.approx(2.5)
    assert found["sequences of 2k tokens at once in equal memory"]["measured"] == pytest.approx(3.375)
