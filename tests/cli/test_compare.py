from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path

import pytest
from tiny_effort import TINY

from stratakv.assets import judging_text
from stratakv.cli import demo, tune
from stratakv.cli.main import main
from stratakv.engine.load import LoadedModel, load_model
from stratakv.tune.effort import EFFORTS
from stratakv.weights.modules import PackedLinear

TEXT = str(judging_text())
load_once = functools.cache(load_model)
SHORT = ["compare", "-m", "embedded", "-f", TEXT, "-c", "32", "--far", "0", "--chunks", "4"]


@pytest.fixture(autouse=True)
def _one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this file share one loaded model: loading takes longer than they do."""
    monkeypatch.setattr("stratakv.engine.load.load_model", load_once)


def test_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, plot = tmp_path / "r.json", tmp_path / "p.svg"
    words = [*SHORT, "f16", "turbo2", "first3: k=q8_0 v=turbo4; rest: turbo4"]
    assert main([*words, "--json", str(results), "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    data = json.loads(results.read_text())
    assert [row["name"] for row in data["rows"]] == ["f16", "turbo2", "first3: k=q8_0 v=turbo4; rest: turbo4", "turbo4"]
    assert data["rows"][0]["kld_mean"] == 0
    assert all(row["verdict"] in " ".join(out.split()) for row in data["rows"])
    assert max(map(len, out.splitlines())) <= 120
    assert plot.read_bytes().startswith(b"<?xml")
    assert f"wrote {results}" in err
    assert f"wrote {plot}" in err
    again = shlex.split(data["command"])
    assert again[:2] == ["stratakv", "compare"]
    assert again[-3:] == words[-3:]
    assert again[again.index("--chunks") :][:2] == ["--chunks", "4"]


def test_far_predictions_are_asked_for_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model has none, and the result says why."""
    words = ["compare", "-m", "embedded", "-f", TEXT, "-c", "32", "--chunks", "1", "--far-ctx-size", "512"]
    assert main([*words, "turbo4", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert "doesn't copy" in data["far"]["words"]
    assert "no far predictions: strata-8m-q8_0 doesn't copy" in err
    assert "--far 4 --far-ctx-size 512" in data["command"]
    assert "far predictions: 4 forward passes of 512 tokens for f16 and for each profile" in err


def test_json_on_standard_output_has_it_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT[:-1], "2", "turbo3", "--reference", "q8_0", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["reference"] == "q8_0"
    assert data["rows"][0]["verdict_kind"] == "undecided"
    assert "against q8_0" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SHORT, "turbo9"], "turbo9"),
        ([*SHORT, "mode3"], "mode"),
        ([*SHORT, "turbo4", "--far", "-1"], "--far -1: at least 0 contexts"),
        ([*SHORT, "turbo4", "--far-ctx-size", "100"], "--far-ctx-size 100: a far context needs at least 512 tokens"),
        ([*SHORT, "turbo4", "--far", "1", "--far-ctx-size", "9999"], "the model's context is 4096"),
        ([*SHORT, "turbo4", "--recent", "2"], "are longer than the context of 32 tokens"),
        ([*SHORT, "turbo4", "--recent", "2:"], "--recent '2:': write PAGES"),
        ([*SHORT, "f16", "f32", "--recent", "2"], "no layer can have the spans 'recent: 2 pages turbo8'"),
        ([*SHORT, "first99: q8_0; rest: turbo4"], "12 KV layers"),
        ([*SHORT, "turbo4", "--reference", "nonsense"], "nonsense"),
        ([*SHORT, "turbo4", "--plot", "plot.pdf"], "must end in .png or .svg"),
        ([*SHORT, "turbo4", "--json", "/nonexistent/r.json"], "/nonexistent"),
        (["compare", "-m", "embedded", "-f", "/nonexistent.txt", "turbo4"], "/nonexistent.txt"),
        (["compare", "-m", "embedded", "-f", TEXT, "-c", "100000", "turbo4"], "one context needs 100000"),
        (["compare", "-m", "embedded", "-f", TEXT, "-b", "0", "turbo4"], "-b 0"),
        (["compare", "-m", "/nonexistent.gguf", "-f", TEXT, "turbo4"], "/nonexistent.gguf"),
    ],
)
def test_what_the_user_can_mend_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("stratakv: error: ")
    assert message in line


def test_a_text_that_is_not_utf_8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("Caf\xe9".encode("latin-1"))
    assert main(["compare", "-m", "embedded", "-f", str(path), "turbo4"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_demo_answers_below_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "CONTEXT", 32)
    monkeypatch.setitem(EFFORTS, "quick", TINY)
    models: list[LoadedModel] = []
    write = tune.tune_and_write
    monkeypatch.setattr(tune, "tune_and_write", lambda loaded, *rest: (models.append(loaded), write(loaded, *rest)))
    assert main(["demo", "--chunks", "4", "--out", str(tmp_path)]) == 0
    out, _ = capsys.readouterr()
    assert out.index("against turbo4") < out.index("Which profiles are better than uniform turbo4")
    data = json.loads((tmp_path / "demo-results.json").read_text())
    assert len(data["rows"]) == 15
    assert {path.name for path in tmp_path.iterdir()} == {
        "demo-results.json",
        "demo-results.png",
        "demo-results.svg",
        "demo-tuned.evidence.json",
        "demo-tuned.html",
        "demo-tuned.profile.json",
        "stratakv-runs",
    }
    assert out.index("Which profiles are better") < out.index("demo-tuned for strata-8m")
    general = shlex.split(data["command"])
    assert general[:4] == ["stratakv", "compare", "-m", "embedded"], "the same numbers by the general command"
    tuned = json.loads((tmp_path / "demo-tuned.evidence.json").read_text())
    assert shlex.split(tuned["command"])[:4] == ["stratakv", "tune", "-m", "embedded"]
    (loaded,) = models
    products = [each.product.exact for each in loaded.model.modules() if isinstance(each, PackedLinear)]
    assert products and not any(products), (
        "tuned as that command does it, not with the products that `compare` measures with"
    )


def test_interrupting_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stratakv.measure.run.Reading", interrupt)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
