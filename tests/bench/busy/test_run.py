"""A short run of `bench busy`, and its goals from made-up rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from stratakv.bench.busy.run import DECODE, TUNE, _visit, busy_processes, goals
from stratakv.cli.main import main

# starts a process that isn't anybody's child here, and keeps a core busy for 5 seconds at most
_STRANGER = """
import os, sys, time
child = os.fork()
if child:
    print(child, flush=True)
    sys.exit()
os.close(1)
end = time.monotonic() + 5
while time.monotonic() < end: pass
"""


def test_one_busy_process_beside_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "r.json"
    words = ["--busy", "2", "-c", "16", "--rounds", "1", "--seconds", "0.01", "-t", "1", "--json", str(results)]
    assert main(["bench", "busy", *words]) == 0
    data = json.loads(results.read_text())
    assert data["schema"] == "stratakv/bench-busy/1"
    ours = [row for row in data["rows"] if row["peer"] is None]
    assert [(row["case"], row["busy"]) for row in ours] == [(DECODE, 0), (TUNE, 0), (DECODE, 2), (TUNE, 2)]
    for row in ours:
        assert row["tokens_per_second"] > 0 and row["kept"] > 0 and row["others_cores"][0] >= 0
    assert all(row["kept"] == 1 for row in ours if row["busy"] == 0)
    out = capsys.readouterr().out
    assert "tokens/s beside busy processes" in out and "embedded with turbo4, 16 tokens" in out


def test_goals_are_shares_of_the_quiet_speed_and_times_llama_cpp() -> None:
    def row(case: str, busy: int, speed: float, kept: float) -> dict[str, Any]:
        peer = "llama.cpp" if case.startswith("llama.cpp") else None
        return {"case": case, "busy": busy, "tokens_per_second": speed, "kept": kept, "peer": peer}

    rows = [row(DECODE, 0, 100, 1), row(TUNE, 0, 50, 1), row("llama.cpp f16", 0, 120, 1)]
    rows += [row(DECODE, 1, 60, 0.6), row(TUNE, 1, 20, 0.4), row("llama.cpp f16", 1, 40, 0.3)]
    found = {(each["goal"], each["unit"]): each for each in goals(rows)}
    assert len(found) == 3
    assert found[f"{DECODE} beside 1 busy", "of the quiet speed"]["met"]
    assert found[f"{DECODE} beside 1 busy", "times llama.cpp's speed"]["measured"] == pytest.approx(1.5)
    missed = found[f"{TUNE} beside 1 busy", "of the quiet speed"]
    assert not missed["met"] and missed["off_by"] == pytest.approx(1 - 0.4 / 0.55)


def test_busy_processes_end_with_the_block() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(ZeroDivisionError), busy_processes(2):
        started = set(psutil.Process().children()) - before
        assert len(started) == 2
        raise ZeroDivisionError
    assert not any(process.is_running() for process in started)


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def test_own_processes_are_not_others() -> None:
    def wait(seconds: float) -> tuple[int, float]:
        time.sleep(seconds)
        return 1, seconds

    before = _machine_seconds()
    with busy_processes(1):
        mine = _visit(wait, 0.5)
    assert mine.others * 0.5 < _machine_seconds() - before - 0.05  # the busy process's time is left out
    stranger = subprocess.Popen([sys.executable, "-c", _STRANGER], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        grandchild = int(stranger.stdout.readline())
        stranger.wait()
        theirs = _visit(wait, 0.5)
    finally:
        os.kill(grandchild, signal.SIGKILL)
    assert theirs.others > 0.1 and "others had" in theirs.disturbed()


@pytest.mark.parametrize("words", [["--profile", "turbo9"], ["-m", "/nowhere.gguf"], ["--busy", "0"], ["--busy", "65"]])
def test_mistakes_are_refused_before_anything_runs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "busy", *words]) == 2
    assert capsys.readouterr().err.startswith("stratakv: error: ")
