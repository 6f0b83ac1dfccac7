"""`bench vllm` before an engine starts: bytes, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_models import tiny_model

from stratakv.bench.vllm.run import VllmSettings, bench_vllm, cache_bytes, described
from stratakv.cli.main import main
from stratakv.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    return folder


def test_the_cache_holds_what_stock_is_asked_for(model: Path) -> None:
    found = described(str(model))
    each = sum(2 * layer.kv_heads * sum(layer.head_dim) for layer in found.geometry.kv_layers)
    settings = VllmSettings(sys.executable, str(model), contexts=(200,))
    assert cache_bytes(settings, found) == (4 * 4096 + 128) * each
    settings = VllmSettings(sys.executable, str(model), contexts=(32000,), long=0)
    assert cache_bytes(settings, found) == (32000 + 128) * each


def test_a_gguf_file_is_refused() -> None:
    with pytest.raises(UserError, match="-m embedded: vLLM reads directories in Hugging Face format"):
        described("embedded")


def test_a_profile_that_can_t_be_is_refused_before_anything_starts(model: Path) -> None:
    with pytest.raises(UserError, match="turbo9"):
        bench_vllm(VllmSettings("/nowhere", str(model), ("turbo9",)))


def test_a_python_without_vllm_is_refused_in_a_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "vllm", "-m", str(model), "--vllm-python", sys.executable, "-t", "1"]
    assert main(words) == 2
    assert "has no vLLM" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", "1"], "at least 2 tokens"),
        (["-c", "16"], "a context holds more than its answer"),
        (["--sequences", "65"], "0 to 64"),
    ],
)
def test_options_that_can_t_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "vllm", "-m", "nowhere", *words]) == 2
    assert said in capsys.readouterr().err
