from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stratakv.bench.generate import run
from stratakv.cli.main import main
from stratakv.engine.describe import describe_model
from stratakv.profile import resolve


def test_rows_of_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "quantized_caches", list)  # a process each: the stock cache and a profile will do
    results = tmp_path / "r.json"
    words = ["bench", "generate", "-m", "embedded", "-c", "130", "--profile", "mode1", "--seconds", "0.0001", "-t", "1"]
    assert main([*words, "--json", str(results)]) == 0
    data = json.loads(results.read_text())
    assert data["schema"] == "stratakv/bench-generate/1"
    rows = [row for row in data["rows"] if row["peer"] != "llama.cpp"]  # there where llama-cpp-python is installed
    assert [row["cache"] for row in rows] == ["DynamicCache", "mode1"]
    assert [row["peer"] for row in rows] == ["transformers", None]
    geometry = describe_model("embedded").geometry
    profile = resolve("mode1", geometry)
    dense, packed = rows
    assert dense["cache_bytes"] == (130 + 6) * sum(
        2 * layer.kv_heads * layer.head_dim[0] * 4 for layer in geometry.kv_layers
    )
    assert packed["cache_bytes"] == 2 * 128 * profile.bytes_per_token  # 136 tokens are two pages
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(1e3 / row["ms"])
        if sys.platform == "linux":
            assert row["peak_bytes"] > row["weight_bytes"] + row["cache_bytes"]


def test_spans_stand_beside_their_own_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "r.json"
    words = ["bench", "generate", "-m", "embedded", "-c", "250", "--profile", "turbo4", "--recent", "1"]
    assert (
        main([*words, "--first", "1", "--no-transformers", "--seconds", "0.0001", "-t", "1", "--json", str(results)])
        == 0
    )
    plain, spanned = (row for row in json.loads(results.read_text())["rows"] if row["peer"] is None)
    assert "spans" not in plain and spanned["cache"] == "turbo4; recent: 1 page turbo8; first: 1 page turbo8"
    found = spanned["spans"]
    assert found["without"] == "turbo4" and 0.1 < found["ratio"] < 10
    assert len(found["page_tokens"]) == 1  # the 256th token
    assert f"{found['ratio']:.3f} times turbo4's time a token" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--profile", "turbo9"], ["--recent", "1:turbo9"], ["-m", "/nowhere.gguf"], ["-c", "0"]]
)
def test_mistakes_end_before_anything_runs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "generate", "-m", "embedded", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
