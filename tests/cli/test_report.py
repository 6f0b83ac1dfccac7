"""`stratakv report`: writes the page in one step or not at all."""

from __future__ import annotations

import json

import pytest
from evidences import evidence, judgement

from stratakv.cli.main import main
from stratakv.report import build_report


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.json").write_text(json.dumps(evidence()))
    (tmp_path / "j.json").write_text(json.dumps(judgement()))
    own = judgement()
    own["text"]["sha256"] = evidence()["text"]["sha256"]
    (tmp_path / "own.json").write_text(json.dumps(own))
    other = judgement()
    other["model"]["fingerprint"] = "f" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))


def test_it_writes_the_page(tmp_path, capsys):
    assert main(["report", "e.json", "--judge", "j.json", "-o", "r.html"]) == 0
    assert (tmp_path / "r.html").read_text() == build_report(evidence(), [judgement()])
    assert capsys.readouterr().err == "wrote r.html\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.json", "-o", "r.html"], "absent.json"),
        (["e.json"], "-o/--output"),
        (["e.json", "-o", "absent/r.html"], "absent/r.html"),
        (["j.json", "-o", "r.html"], "'stratakv/tune/1' is needed"),
        (["e.json", "--judge", "e.json", "-o", "r.html"], "'stratakv/judge/1' is needed"),
        (["e.json", "--judge", "own.json", "-o", "r.html"], "the text of the tuning: judge on another text"),
        (["e.json", "--judge", "other.json", "-o", "r.html"], "give files of one model"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(words, said, tmp_path, capsys):
    assert main(["report", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err
    assert not (tmp_path / "r.html").exists()
