"""`stratakv show`: on a described model, never on loaded weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from geometries import plain
from transformers import LlamaConfig

from stratakv.cli.main import main

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(autouse=True)
def _no_modes_from_outside(monkeypatch):
    monkeypatch.delenv("TURBO_LAYER_ADAPTIVE", raising=False)


@pytest.fixture
def described(monkeypatch):
    model = SimpleNamespace(
        geometry=plain(12), fingerprint="abc", name="plain-12", warnings=("pad id ignored",), config=LlamaConfig()
    )
    monkeypatch.setattr("stratakv.engine.describe.describe_model", lambda source: model)


@pytest.mark.usefixtures("described")
def test_text(capsys):
    assert main(["show", "-m", "x", "--profile", "edges3"]) == 0
    out = capsys.readouterr().out
    assert "3-8    3-8       full  turbo4  turbo4  264 each" in out
    assert "warning: pad id ignored" in out
    assert "attention reads the pages with kernel" in out


@pytest.mark.usefixtures("described")
def test_json_with_a_context_beyond_the_models(capsys):
    assert main(["show", "-m", "x", "-ctk", "q8_0", "-ctv", "turbo4", "--recent", "0", "-c", "9000", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["bytes_at_context"]["9000"] == 9000 * data["bytes_per_token"] == 9000 * 12 * 404
    assert data["warnings"][1].startswith("context 9000 is beyond the model's 4096")


@pytest.mark.usefixtures("described")
def test_json_in_a_file(capsys, tmp_path):
    assert main(["show", "-m", "x", "--json", str(tmp_path / "show.json")]) == 0
    assert json.loads((tmp_path / "show.json").read_text())["schema"] == "stratakv/show/1"
    assert "12,288 bytes a token" in capsys.readouterr().out


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-ctk", "turbo9"], "turbo9"),
        (["--profile", "20: turbo4"], "layer 20"),
        (["--layer-adaptive", "4"], "unknown mode 4"),
        (["--profile", "absent.json"], "absent.json"),
        (["-c", "0"], "context 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, options, message):
    assert main(["show", "-m", "x", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not beside the repository")
def test_a_real_gguf_with_few_layers_and_head_dim_8(capsys):
    model = str(SHARED / "models" / "stories260Ktok512.gguf")
    assert main(["show", "-m", model, "--profile", "mode1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {(row["k"], row["v"]) for row in data["layers"]} == {("turbo4", "turbo4")}
    assert any("mode 1 does nothing: it needs at least 8 KV layers" in warning for warning in data["warnings"])
