"""`stratakv lm-eval` and `python -m stratakv.lm_eval`: the harness's own command line, and nothing of it lost."""

from __future__ import annotations

import json
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed: make lm-eval")

from lm_eval.tasks import TaskManager

from stratakv.cli import lm_eval as command
from stratakv.cli.main import main
from stratakv.errors import UserError
from stratakv.lm_eval import command as evaluating

ARGUMENTS = ["--model_args", "pretrained=embedded,profile=turbo4", "--limit", "2"]


def test_a_task_runs_from_the_command_line_to_its_table(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The task has a closed form of its standard error: the command line resamples 100,000 times for others. The harness's own
    thousands of tasks, which it would read first, are left out."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    argv, out = list(sys.argv), tmp_path / "results.json"
    words = [
        "lm-eval",
        "--include_path",
        str(tasks),
        "--tasks",
        "stratakv_arithmetic",
        *ARGUMENTS,
        "--output_path",
        str(out),
    ]
    assert main(words) == 0
    assert "|stratakv_arithmetic|" in capsys.readouterr().out
    (file,) = tmp_path.glob("results*.json")
    found = json.loads(file.read_text())["config"]
    assert (found["model"], found["profile"]) == ("stratakv", "turbo4")
    assert sys.argv == argv


def test_the_module_is_the_same_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is one line, and the exit code says so."""
    given = []

    def refuse(words: list[str]) -> None:
        given.append(words)
        raise UserError("no such profile")

    monkeypatch.setattr("stratakv.lm_eval.command.run", refuse)
    monkeypatch.setattr(sys, "argv", ["stratakv.lm_eval", *ARGUMENTS])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("stratakv.lm_eval", run_name="__main__")
    assert (ended.value.code, given) == (2, [ARGUMENTS])
    assert capsys.readouterr().err == "stratakv lm-eval: error: no such profile\n"


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["--tasks", "a"], True),
        (["run", "--tasks", "a"], True),
        (["--model", "hf", "--tasks", "a"], False),
        (["--model=hf", "--tasks", "a"], False),
        (["--config", "file.yaml"], False),
        (["ls", "tasks"], False),
    ],
)
def test_the_model_is_ours_where_none_is_named(given: list[str], added: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(evaluating, "cli_evaluate", lambda: seen.append(sys.argv[1:]))
    evaluating.run(given)
    assert seen == [given + ["--model", "stratakv"] * added]


def test_help_needs_no_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    for words in (["lm-eval"], ["lm-eval", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert "profile=TEXT" in capsys.readouterr().out
    assert main(["lm-eval", "--tasks", "arc_easy"]) == 2
    assert "pip install 'stratakv[lm-eval]'" in capsys.readouterr().err
