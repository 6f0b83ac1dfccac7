"""A short run of `bench tune`, the shape's file, and what is extrapolated from a few of its layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from stratakv.bench.tune import run, shape
from stratakv.bench.tune.run import TuneSettings, bench_tune, format_tune
from stratakv.cli.main import main
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_weights


def test_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "r.json"
    assert main(["bench", "tune", "-c", "32", "-t", "1", "--json", str(results)]) == 0
    data = json.loads(results.read_text())
    assert data["schema"] == "stratakv/bench-tune/1"
    (row,) = data["rows"]
    assert (
        row["layers"] == 12
        and row["passes"] == 24
        and row["seconds"] > 0
        and row["cpu_seconds"] > 0
        and not row["extrapolated"]
    )
    assert row["beside_weights_bytes"] is None or row["beside_weights_bytes"] > 2**20
    assert row["first_seconds"] == pytest.approx(row["seconds"])
    out = capsys.readouterr().out
    assert row["name"] in out and "32 tokens" in out


def test_a_shape_needs_two_numbers_of_layers(capsys: pytest.CaptureFixture[str]) -> None:
    for layers in ("2", "2,3", "4,4"):
        assert main(["bench", "tune", "-m", shape.SHAPE, "--layers", layers]) == 2
        assert "two different even numbers" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tune", "-m", "nowhere.gguf"]) == 2
    assert "nowhere.gguf" in capsys.readouterr().err


def test_the_whole_shape_is_extrapolated_from_few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(file: str, settings: TuneSettings) -> dict[str, Any]:
        layers = int(Path(file).stem.split("-")[-2])
        found = {"name": Path(file).stem, "layers": layers, "weight_bytes": 1000 + 10 * layers}
        found |= {"seconds": 4.0 + layers, "cpu_seconds": 2 * layers, "passes": 3, "types": 5, "first_passes": 6}
        return run._row(found, 50 + 2 * layers, extrapolated=False)

    monkeypatch.setattr(run, "_measured", measured)
    monkeypatch.setattr(run, "write_shape", lambda path, layers: path.touch())
    data = bench_tune(TuneSettings(shape.SHAPE, 512, 1, 2, (2, 4, 6)), command="", report=lambda line: None)
    last = data["rows"][-1]
    assert [row["layers"] for row in data["rows"]] == [2, 4, 6, 32] and last["extrapolated"]
    assert (
        last["seconds"] == 36
        and last["cpu_seconds"] == 64
        and last["weight_bytes"] == 1320
        and last["beside_weights_bytes"] == 54 + 30 * 4 * 512 * 4096  # the inputs of 30 layers more
    )
    assert last["first_seconds"] == pytest.approx(2 * 36)
    assert {each["goal"] for each in data["goals"]} == {"memory beside the weights", "gradients of a first profile"}
    assert "(extrapolated)" in format_tune(data)


def test_the_shapes_file_is_a_model_of_reasonable_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"WIDTH": 512, "_MLP": 1024, "_KV": 128, "_WORDS": 300, "_HEADS": 4, "_KV_HEADS": 1}.items():
        monkeypatch.setattr(shape, name, size)
    path = tmp_path / "shape.gguf"
    shape.write_shape(path, 2)
    description = describe_model(path)
    assert description.geometry.kv_layers[0].head_dim == (128, 128)
    weights = load_weights(description)
    with torch.inference_mode():
        logits = weights.model(input_ids=torch.arange(16)[None]).logits
    assert logits.isfinite().all() and 0.01 < float(logits.std()) < 100
    kinds = [tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) == 2]
    assert sorted(kinds) == ["Q4_K"] * 13 + ["Q6_K"] * 3
