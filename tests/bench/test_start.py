"""`bench start` on real processes, and what it makes of times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from stratakv.bench import start
from stratakv.cli.main import main
from stratakv.errors import UserError


def test_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("stratakv.bench.peers.llama.llama_python", lambda given: given)
    results = tmp_path / "r.json"
    assert main(["bench", "start", "-m", "embedded", "--rounds", "1", "-t", "1", "--json", str(results)]) == 0
    data = json.loads(results.read_text())
    assert data["schema"] == "stratakv/bench-start/1"
    kinds = ["--help", "show", "ready to generate", "ready to listen"]
    assert [row["what"] for row in data["rows"]] == kinds
    for row in data["rows"]:
        assert 0 < row["first_line_seconds"] <= row["seconds"] == row["seconds_rounds"][0] < 120
    by_kind = {row["what"]: row["seconds"] for row in data["rows"]}
    assert by_kind["--help"] < by_kind["show"]
    assert [goal["limit"] for goal in data["goals"]] == [0.1, 2.5, 6.0, 6.0, 1.0]
    out = capsys.readouterr().out
    assert "ready to listen" in out and "llama-cpp-python is not installed here" in out


def case(script: str, ready: Any) -> Any:
    return start._Case("m", "show", (sys.executable, "-c", script), ready)


def test_the_first_line_and_readiness_are_told_apart() -> None:
    script = "import sys,time; print('a',file=sys.stderr,flush=True); time.sleep(.3); print('ready',flush=True); time.sleep(60)"
    first, ready = start._measured(case(script, ("stdout", b"ready")))
    assert first + 0.25 < ready < 30


@pytest.mark.parametrize("ready", [None, ("stdout", b"ready")])
def test_a_command_that_fails_is_an_error_with_its_last_words(ready: Any) -> None:
    with pytest.raises(UserError, match="ended with code 3: why it failed"):
        start._measured(case("import sys; print('why it failed', file=sys.stderr); sys.exit(3)", ready))


def test_large_vocabularies_have_more_time() -> None:
    rows = [
        {"model": name, "what": "ready to listen", "seconds": 7.0, "first_line_seconds": 0.5}
        for name in ("small", "large")
    ]
    found = start._goals(rows, {"small": 49_152, "large": 262_144})
    assert [(goal["limit"], goal["met"]) for goal in found] == [(6.0, False), (10.0, True), (1.0, True)]
