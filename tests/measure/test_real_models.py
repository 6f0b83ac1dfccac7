"""`compare` on models of other people: what their own model cards and llama.cpp's numbers say must come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_models import GEMMA3, SMOLLM2, needs_models

from stratakv.assets import judging_text
from stratakv.cli.main import main

pytestmark = [pytest.mark.real, needs_models]


def compared(model: Path, to: Path, chunks: int, *profiles: str) -> dict[str, dict[str, float]]:
    """Rows of `stratakv compare` by profile."""
    arguments = ["-m", str(model), "-f", str(judging_text()), "-c", "512", "--chunks", str(chunks), "--far", "0"]
    assert main(["compare", *arguments, "--json", str(to), *profiles]) == 0
    return {row["name"]: row for row in json.loads(to.read_text())["rows"]}


def test_smollm2_is_a_language_model_and_its_k_is_what_turbo4_hurts(tmp_path: Path) -> None:
    rows = compared(SMOLLM2, tmp_path / "rows.json", 2, "f16", "q8_0/turbo4", "turbo4/q8_0", "turbo4")
    assert 5 < rows["f16"]["ppl"] < 60
    assert rows["f16"]["kld_mean"] == 0
    assert rows["q8_0/turbo4"]["kld_mean"] < rows["turbo4/q8_0"]["kld_mean"] < rows["turbo4"]["kld_mean"] < 0.2


@pytest.mark.slow
def test_gemma3_is_a_language_model(tmp_path: Path) -> None:
    rows = compared(GEMMA3, tmp_path / "rows.json", 2, "f16", "q8_0", "turbo4")
    assert 5 < rows["f16"]["ppl"] < 60
    assert rows["q8_0"]["kld_mean"] < 0.01 < rows["turbo4"]["kld_mean"] < 0.5
