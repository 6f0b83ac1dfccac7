"""`tune`, `judge` and `plan` by their command lines, with spans: chosen for all layers, for each, or given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_effort import SHORT, load_once, use_tiny

from stratakv.assets import judging_text
from stratakv.cli.main import main
from stratakv.evidence.tuning import read_evidence
from stratakv.pages.footprint import allocated_bytes
from stratakv.profile import Spans, load_profile
from stratakv.tune.far import STAGE


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny(monkeypatch)


def test_a_memory_and_a_context_choose_spans_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The profile has the spans that were predicted to be best, in every layer; it fits; plan and report know of them."""
    types = ["--effort", "first", "-c", "512", "--types", "turbo2,turbo4,q8_0", "--second-opinion", "3"]
    memory, where = ["--memory", "30MiB", "--context", "8192"], ["--out", str(tmp_path), "--name", "mine"]
    assert main(["tune", "-m", "embedded", *types, *memory, *where]) == 0
    printed = capsys.readouterr()
    assert "spans: recent: 1 page turbo8; bytes a token and bpv are those outside of them" in printed.out
    assert "far predictions don't count here: strata-8m-q8_0 doesn't copy" in printed.err
    assert "far predictions, whether there are any: 2 forward passes of 2,048 tokens at most, about" in printed.err
    loaded = load_once("embedded")
    profile = load_profile(tmp_path / "mine.profile.json", loaded.geometry, loaded.fingerprint)
    assert set(profile.spans) <= {Spans(1), Spans()} and Spans(1) in profile.spans, "q8_0 alone is as fine as the span"
    assert allocated_bytes(profile, 8192) <= 30 * 2**20
    data = json.loads((tmp_path / "mine.evidence.json").read_text())
    assert {"name": STAGE, "forward_passes": 1.25}.items() <= data["cost"]["stages"][0].items()
    none, recent = data["span_choice"]["options"]
    assert (none["spans"], recent["spans"]) == (None, data["spans"]) == (None, Spans(1).to_json())
    assert recent["predicted_kld"] < none["predicted_kld"] and recent["bytes"] <= 30 * 2**20
    assert f"span choice: {data['span_choice']['words']}" in printed.out
    assert [row["name"] for row in data["rows"]][1].endswith("+ spans"), "the best uniform pair may have spans as well"
    assert "recent: 1 page turbo8, predicted kld" in (tmp_path / "mine.html").read_text().lower()
    evidence = ["--evidence", str(tmp_path / "mine.evidence.json")]
    assert main(["plan", "-m", "embedded", *memory, *evidence]) == 0
    assert "recent: 1 page turbo8" in capsys.readouterr().out
    assert (
        main(
            ["tune", "-m", "embedded", *types, *memory, *where, "--recent", "0", "--far", "0", "--second-opinion", "0"]
        )
        == 0
    )
    assert not any(load_profile(tmp_path / "mine.profile.json", loaded.geometry, loaded.fingerprint).spans)
    assert "span_choice" not in json.loads((tmp_path / "mine.evidence.json").read_text())


def test_layers_have_spans_of_their_own_where_that_saves_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget has room for most layers' spans. Profile, evidence, report and plan say which layers have them."""
    types = ["--effort", "first", "-c", "512", "--types", "turbo2,turbo4,q8_0", "--second-opinion", "3"]
    memory, where = ["--memory", "17MiB", "--context", "8192"], ["--out", str(tmp_path), "--name", "mine"]
    assert main(["tune", "-m", "embedded", *types, *memory, *where]) == 0
    printed = capsys.readouterr().out
    loaded = load_once("embedded")
    profile = load_profile(tmp_path / "mine.profile.json", loaded.geometry, loaded.fingerprint)
    assert set(profile.spans) == {Spans(1), Spans()}
    assert allocated_bytes(profile, 8192) <= 17 * 2**20
    data = read_evidence(tmp_path / "mine.evidence.json")
    by_layer = data["span_choice"]["by_layer"]
    assert by_layer["taken"] and by_layer["spans"] == data["spans"]
    assert [Spans(**each) if each else Spans() for each in data["spans"]] == list(profile.spans)
    alike = min(each["predicted_kld"] for each in data["span_choice"]["options"] if each["predicted_kld"])
    assert by_layer["lower_bound"] <= by_layer["predicted_kld"] < alike
    assert data["chosen"]["kld_where_chosen"] == pytest.approx(by_layer["predicted_kld"])
    assert f"span choice: {data['span_choice']['words']}" in printed and "one for all layers: none" in printed
    count = sum(map(bool, profile.spans))
    assert f"recent: 1 page turbo8 in {count} of 12 layers" in (tmp_path / "mine.html").read_text()
    evidence = ["--evidence", str(tmp_path / "mine.evidence.json")]
    assert main(["plan", "-m", "embedded", *memory, *evidence]) == 0
    planned = capsys.readouterr().out
    assert (
        f"recent: 1 page turbo8 ({12 - count} of 12 layers have others or none)" in planned and "--profile" in planned
    )
    assert main(["plan", "-m", "embedded", *memory, *evidence, "--recent", "0"]) == 0
    assert "the KLDs in" in capsys.readouterr().out
    data["spans"].pop()
    (tmp_path / "mine.evidence.json").write_text(json.dumps(data))
    assert main(["plan", "-m", "embedded", *memory, *evidence]) == 2
    assert "spans is of 11 layers, the model has 12" in capsys.readouterr().err


@pytest.mark.slow
def test_tuned_and_judged_with_spans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under fixed spans: they are in the profile, in the evidence, in what it is compared with, and in the judgement."""
    words = [*SHORT, "-c", "384", "--types", "turbo2,turbo4", "--recent", "1", "--out", str(tmp_path), "--name", "mine"]
    assert main(words) == 0
    assert "spans: recent: 1 page turbo8; bytes a token and bpv are those outside of them" in capsys.readouterr().out
    loaded = load_once("embedded")
    profile = load_profile(tmp_path / "mine.profile.json", loaded.geometry, loaded.fingerprint)
    assert set(profile.spans) == {Spans(1)}
    data = json.loads((tmp_path / "mine.evidence.json").read_text())
    assert data["spans"] == Spans(1).to_json()
    names = [row["name"] for row in data["rows"]]
    assert names[:3] == ["mine", "turbo4 + spans", "turbo4"]
    (chosen,) = [point for point in data["front"] if point["kld"] is not None]
    assert chosen["bytes_per_token_at_context"] == data["rows"][0]["bytes_per_token"] > chosen["bytes_per_token"]
    spanned, bare = data["rows"][1:3]
    assert spanned["kld_mean"] < bare["kld_mean"] and spanned["bytes_per_token"] > bare["bytes_per_token"] == 3168
    words = ["judge", str(tmp_path / "mine.profile.json"), "-m", "embedded", "-f", str(judging_text())]
    words += ["--chunks", "1", "--far", "0", "--permutations", "0", "--json", str(tmp_path / "j.json")]
    assert main([*words, "--runs", str(tmp_path / "runs")]) == 0
    judged = json.loads((tmp_path / "j.json").read_text())
    assert judged["context"] == 384, "the tuning's, of which the spans are a part"
    assert judged["spans"] == Spans(1).to_json()
    (bare,) = [row for row in judged["rows"] if row["family"] == "bare"]
    assert bare["name"] == "mine, no spans" and bare["kld_mean"] > judged["rows"][0]["kld_mean"]
    assert "turbo3 + spans" in {row["name"] for row in judged["rows"]}
