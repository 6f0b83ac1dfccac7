"""A small load on a real server process, and what is made of many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stratakv.cli.main import main


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
    said = [goal["goal"] for goal in data["goals"]]
    assert any("seen before" in words for words in said) and not any("clients" in words for words in said)
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
