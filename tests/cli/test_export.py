"""`stratakv export`: the command alone on standard output, everything else beside it."""

from __future__ import annotations

import json

import pytest
from evidences import evidence

from stratakv.assets import judging_text
from stratakv.cli.main import main
from stratakv.engine.describe import describe_model
from stratakv.profile import Spans, load_profile


@pytest.fixture(scope="module")
def description():
    return describe_model("embedded")


@pytest.fixture(autouse=True)
def _described(description, monkeypatch, tmp_path):
    """Described once: reading the file's header takes longer than all the rest."""
    monkeypatch.setattr("stratakv.engine.describe.describe_model", lambda source: description)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.json").write_text(json.dumps(evidence(fingerprint=description.fingerprint)))
    (tmp_path / "other.json").write_text(json.dumps(evidence(fingerprint="f" * 64)))
    (tmp_path / "text.txt").write_text(judging_text().read_text(encoding="utf-8")[:2000])


def export(*words: str) -> int:
    return main(["export", *words, "-m", "embedded"])


def test_the_command_alone_is_on_standard_output(capsys, description):
    assert export("turbo4", "--to", "fork") == 0
    out, err = capsys.readouterr()
    assert out == f"TURBO_LAYER_ADAPTIVE=0 llama-server -m {description.path} -fa on -ctk turbo4 -ctv turbo4\n"
    assert err.startswith("note: ")


def test_it_can_be_a_file(tmp_path, capsys):
    assert export("q8_0/q4_0_rot", "--to", "ik", "-o", "run.sh") == 0
    assert (tmp_path / "run.sh").read_text().endswith("-ctk q8_0 -ctv q4_0 -vhad\n")
    assert capsys.readouterr().out == ""


def test_a_profile_file_of_any_text(tmp_path, description):
    assert export("edges3", "--to", "stratakv", "-o", "edges3.profile.json") == 0
    profile = load_profile(tmp_path / "edges3.profile.json", description.geometry, description.fingerprint)
    assert profile.pairs[0] == ("q8_0", "turbo4") and profile.fingerprint == description.fingerprint
    assert export("edges3.profile.json", "--to", "buun") == 0


def test_vllm_wants_another_form_of_the_model(capsys):
    assert export("first2,last2: f16; rest: turbo4", "--to", "vllm") == 0
    out, err = capsys.readouterr()
    assert out == "vllm serve MODEL_DIRECTORY --kv-cache-dtype turboquant_4bit_nc\n"
    assert "not the GGUF" in err


def test_what_cannot_be_expressed_is_an_error_with_an_offer(capsys):
    assert export("0: turbo4/turbo5; rest: turbo4", "--to", "buun") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "V turbo5 -> turbo4 in KV layer 0" in err and "unknown: --evidence predicts it" in err
    last = err.splitlines()[-1]
    assert last.startswith("stratakv: error: the buun fork can't express") and "V turbo5 in KV layer 0" in last
    assert last.endswith("stratakv export turbo4 -m embedded --to buun")


def test_evidence_predicts_what_it_costs(capsys):
    assert export("0: turbo4/turbo5; rest: turbo4", "--to", "buun", "--evidence", "e.json", "--json") == 2
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["expressible"] is False and data["command"] is None
    assert data["offer"]["chosen_by"] == "least predicted KLD"
    assert data["offer"]["predicted_kld"] > 0 and f"predicted KLD {1e3 * data['offer']['predicted_kld']:.2f}e-3" in err


def test_a_text_measures_what_it_costs(capsys):
    words = ["-f", "text.txt", "-c", "32", "--chunks", "4"]
    assert export("0: turbo4/turbo5; rest: turbo4", "--to", "fork", *words, "--json") == 2
    out, err = capsys.readouterr()
    measured = json.loads(out)["offer"]["measured"]
    assert measured["chunks"] == 4 and measured["kld"] > 0 and measured["asked_kld"] > 0
    assert "measured on text.txt: KLD" in err


def test_json(capsys):
    assert export("turbo4", "--to", "buun", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (
        data["schema"] == "stratakv/export/1"
        and data["expressible"]
        and data["command"].startswith("VBR_LAYER_STRICT=1")
    )


def test_other_runtimes_lose_spans_and_it_is_said(tmp_path, description, capsys):
    spans = "recent: 2 pages turbo8; first: 1 page turbo8"
    for words in (["turbo4", "--recent", "2", "--first", "1"], [f"turbo4; {spans}"]):
        assert export(*words, "--to", "fork") == 0
        out, err = capsys.readouterr()
        assert out.endswith("-ctk turbo4 -ctv turbo4\n")
        assert f"has no spans: '{spans}' is lost, all pages are in the layers' own types there" in err
    assert export(f"0: turbo4/turbo5; rest: turbo4; {spans}", "--to", "buun") == 2
    assert f"'{spans}' is lost" in capsys.readouterr().err
    assert export("turbo4", "--recent", "2", "--to", "stratakv", "-o", "own.json") == 0
    assert "lost" not in capsys.readouterr().err
    assert set(load_profile(tmp_path / "own.json", description.geometry).spans) == {Spans(2)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["turbo4", "--to", "ollama"], "--to"),
        (["turbo9", "--to", "fork"], "turbo9"),
        (["turbo4"], "--to"),
        (["turbo4", "--recent", "40", "--to", "stratakv", "-o", "x.json"], "longer than the context"),
        (["q8_0", "--recent", "2:turbo4", "--to", "stratakv", "-o", "x.json"], "q8_0 is as fine as turbo4"),
        (["turbo4", "--to", "fork", "-o", "absent/run.sh"], "absent/run.sh"),
        (["turbo5", "--to", "fork", "--evidence", "other.json"], "not of the one at hand"),
        (["turbo5", "--to", "fork", "--evidence", "absent.json"], "No such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, said, capsys, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert export(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert sorted(tmp_path.iterdir()) == before


def test_the_evidence_beside_a_tuned_profile_is_found(tmp_path, description, capsys):
    from dataclasses import replace

    from stratakv.profile import resolve, save_profile

    tuned = resolve("0: turbo4/turbo5; 11: turbo4/turbo3; rest: turbo4", description.geometry)
    tuned = replace(tuned, fingerprint=description.fingerprint, evidence={"file": "e.json"})
    save_profile(tuned, tmp_path / "tuned.profile.json")
    assert export("tuned.profile.json", "--to", "fork") == 2
    assert "predicted KLD" in capsys.readouterr().err
    (tmp_path / "e.json").unlink()
    assert export("tuned.profile.json", "--to", "fork") == 2
    assert "unknown: --evidence predicts it" in capsys.readouterr().err
