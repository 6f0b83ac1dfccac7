"""The tables and the figure of docs/results.md come from the JSON alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from additivity_figure import draw
from evidences import evidence, judgement
from results_tables import main

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_a_judgement_and_an_evidence_are_a_row_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = evidence()
    tuned["headroom"]["uniform"] = "turbo4"
    tuned["fidelity"]["gradients"] = {"r2": -0.5, "bias": -0.2}
    judged = judgement(change=-0.32)
    for row in judged["rows"]:
        row["kld_per_chunk"] = [row["kld_mean"] * hard for hard in (0.8, 1.2, 0.9, 1.1)]
    (tmp_path / "a.json").write_text(json.dumps(judged))
    (tmp_path / "b.json").write_text(json.dumps(tuned))
    monkeypatch.setattr(sys, "argv", ["results_tables.py", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| made-up")]
    assert len(rows) == 2
    assert "-32.0 % [-32, -32]<br>turbo4, 3" in rows[0], "against the uniform type of the budget"
    assert "none fits" in rows[0], "no layer rule has so few bytes"
    assert "31 % of turbo4" in rows[1] and "| 0.98 | +2 % | -0.50 |" in rows[1] and rows[1].endswith("| 900 | 300 |")


def test_a_rule_line_too_long_for_a_cell_is_a_letter_and_said_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = judgement(change=-0.32)
    rule, unused = ("; ".join(f"{layer}: {pair}" for layer in range(80)) for pair in ("turbo4/turbo3", "q8_0"))
    for row in judged["rows"]:
        row["kld_per_chunk"] = [row["kld_mean"] * hard for hard in (0.8, 1.2, 0.9, 1.1)]
        row["name"] = {"edges3": rule, "q8_0": unused}.get(row["name"], row["name"])
    judged["equal_bytes"]["at"] = 5000
    (tmp_path / "a.json").write_text(json.dumps(judged))
    monkeypatch.setattr(sys, "argv", ["results_tables.py", str(tmp_path / "a.json")])
    main()
    out = capsys.readouterr().out
    letter = re.search(r"<br>([A-Z]), 2.9", out)
    assert letter is not None and f"* {letter[1]} = `{rule}`" in out
    assert out.count(rule) == 1 and unused not in out


def test_what_the_page_shows_is_what_the_files_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(str(path) for path in RESULTS.glob("*.json") if not path.name.startswith("gradients-"))
    files = [path for path in files if not path.endswith(".profile.json")]
    assert len(files) > 20
    monkeypatch.setattr(sys, "argv", ["results_tables.py", *files])
    main()
    page = (RESULTS.parent / "results.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row not in page] == []


def test_the_figure_is_a_picture_and_repeats(tmp_path: Path) -> None:
    one = evidence()
    one["fidelity"]["gradients"] = {"r2": -0.5, "bias": -0.2}
    draw([one, one, one, one], tmp_path / "a.png")
    draw([one, one, one, one], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
