from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from stratakv.assets import judging_text
from stratakv.cli.main import main
from stratakv.cli.measuring_options import progress, stage_progress
from stratakv.engine.load import LoadedModel, load_model

TEXT = str(judging_text())
load_once = functools.cache(load_model)
SHORT = ["perplexity", "-m", "embedded", "-f", TEXT, "-c", "32", "--chunks", "4"]


@pytest.fixture(autouse=True)
def _one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this file share one loaded model: loading takes longer than they do."""
    monkeypatch.setattr("stratakv.engine.load.load_model", load_once)


def test_the_profile_is_shown_before_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "-ctk", "q8_0", "-ctv", "turbo4", "--kl-divergence"]) == 0
    out, _ = capsys.readouterr()
    assert out.index("profile q8_0/turbo4") < out.index("PPL = ")
    assert "+/-" in out
    assert "KLD mean = " in out
    assert "KLD median = " in out


def test_perplexity_alone_has_its_error_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    assert main([*SHORT, "--layer-adaptive", "7", "-ctk", "turbo4", "-ctv", "turbo4", "--json", str(path)]) == 0
    out, _ = capsys.readouterr()
    assert "ignores -ctv" in out
    assert "KLD" not in out
    data = json.loads(path.read_text())
    assert data["schema"] == "stratakv/perplexity/1"
    assert data["rows"][0]["ppl_se"] > 0
    assert "--layer-adaptive 7" in data["command"]


def test_the_command_in_the_result_needs_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBO_LAYER_ADAPTIVE", "7")
    for options, expected in (
        (["-ctk", "turbo4", "-ctv", "turbo4"], "-ctk turbo4 -ctv turbo4 --layer-adaptive 7"),
        (["--layer-adaptive", "1", "-ctk", "turbo4"], "-ctk turbo4 --layer-adaptive 1"),
        (["--profile", "turbo4"], "--profile turbo4"),
    ):
        assert main([*SHORT, *options, "--json", str(tmp_path / "r.json")]) == 0
        assert json.loads((tmp_path / "r.json").read_text())["command"].endswith(f"--dtype f32 --device cpu {expected}")


def test_json_on_standard_output_has_it_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["name"] == "f16"
    assert "profile f16" in err


def test_a_context_beyond_the_models_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*args: Any, **kwargs: Any) -> LoadedModel:
        loaded = load_once(*args, **kwargs)
        return dataclasses.replace(loaded, geometry=dataclasses.replace(loaded.geometry, context=16))

    monkeypatch.setattr("stratakv.engine.load.load_model", short)
    path = tmp_path / "r.json"
    assert main([*SHORT, "--json", str(path)]) == 0
    assert "context 32 is beyond the model's 16" in capsys.readouterr().out
    assert "beyond the model's 16" in json.loads(path.read_text())["warnings"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-ctk", "turbo9"], "turbo9"),
        (["--chunks", "0"], "--chunks 0"),
        (["--profile", "missing.json"], "missing.json"),
        (["--json", "/nonexistent/r.json"], "/nonexistent"),
    ],
)
def test_what_the_user_can_mend_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_progress_is_plain_lines_away_from_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock: a pass of a large model may take a minute."""
    monkeypatch.setattr("stratakv.cli.measuring_options._FIRST_LINE", 0.02)
    monkeypatch.setattr("stratakv.cli.measuring_options._BETWEEN_LINES", 0.02)
    lines: list[str] = []

    def lines_until(wanted: str) -> None:
        for _ in range(500):
            lines.extend(capsys.readouterr().err.splitlines())
            if any(line.startswith(wanted) for line in lines):
                return
            time.sleep(0.02)
        pytest.fail(f"no line {wanted!r} among {lines}")

    with progress("test") as report:
        lines_until("test: no pass done yet, 0 s")
        report(1, 4)
        lines_until("test: 1 of 4 passes, 0 s, about ")
        report(4, 4)
        time.sleep(0.1)
        capsys.readouterr()
        time.sleep(0.1)
        assert capsys.readouterr().err == "", "what is done needs no line"


def test_a_stages_first_pass_says_nothing_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage's clock begins with the first report, when a pass is over."""
    monkeypatch.setattr("stratakv.cli.measuring_options._FIRST_LINE", 0.02)
    monkeypatch.setattr("stratakv.cli.measuring_options._BETWEEN_LINES", 0.02)
    with stage_progress() as report:
        report("stage", 1, 1001)
        time.sleep(0.1)
        first = capsys.readouterr().err.splitlines()
        report("stage", 2, 1001)
        time.sleep(0.1)
        then = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stage: 2 ")]
    assert first and set(first) == {"stage: 1 of 1001 passes, 0 s"}
    assert then and all(int(line.split("about ")[1].split()[0]) >= 90 for line in then), "999 more of 0.1 s"


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("test") as report:
        report(3, 4)
    out, err = capsys.readouterr()
    assert out == ""
    assert "passes" not in err
