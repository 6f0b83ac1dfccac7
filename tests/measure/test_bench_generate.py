from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from stratakv.cli.main import main
from stratakv.engine.describe import describe_model
from stratakv.measure import bench_generate
from stratakv.measure.model_shapes import qwen3_config, random_model, write_random_gguf
from stratakv.profile import resolve

SMALL = {
    **qwen3_config(),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 256,
}


def test_rows_of_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench_generate, "quantized_caches", list
    )  # a process each: the stock cache and a profile will do
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


@pytest.mark.parametrize("words", [["--profile", "turbo9"], ["-m", "/nowhere.gguf"], ["-c", "0"]])
def test_mistakes_end_before_anything_runs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "generate", "-m", "embedded", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_random_model_has_the_shape_and_finite_logits() -> None:
    model = random_model(SMALL)
    assert model.dtype == torch.bfloat16
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 256)
    assert bool(logits.isfinite().all())
    assert float(logits.float().std()) > 0


def test_random_gguf_is_read_as_the_same_geometry(tmp_path: Path) -> None:
    from gguf import GGUFReader

    write_random_gguf(tmp_path / "m.gguf", SMALL)
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    model = random_model(SMALL)
    assert len(shapes) == len(list(model.parameters()))  # tied embeddings count once on both sides
    assert shapes["token_embd.weight"] == (64, 256)
    assert shapes["blk.1.attn_k.weight"] == (64, 128)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sum(int(torch.tensor(shape).prod()) for shape in shapes.values()) == parameters
