"""Models that lie on this machine, found where other programs keep theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stratakv.assets import embedded_model
from stratakv.cli.main import main
from stratakv.engine import local_models as module
from stratakv.engine.describe import describe_model
from stratakv.engine.local_models import find_model, listed, local_models

DIGEST = "sha256:" + "ab" * 32


def put(path: Path, size: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def manifest(home: Path, way: str, text: str | None = None) -> None:
    path = home / ".ollama/models/manifests" / way
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = [{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0"},
              {"mediaType": "application/vnd.ollama.image.model", "digest": DIGEST}]  # fmt: skip
    path.write_text(json.dumps({"layers": layers}) if text is None else text, encoding="utf-8")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a model in every place, and with what is none."""
    for name in ("LLAMA_CACHE", "OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.sys, "platform", "linux")
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (
        put(here / "mine.gguf"),
        put(here / "models/second.GGUF"),
        put(here / "deep/er/unseen.gguf"),
        put(here / "notes.txt"),
    )
    put(home / ".cache/llama.cpp/unsloth_x.gguf"), put(home / ".cache/llama.cpp/mine.gguf", 9)
    put(home / ".cache/llama.cpp/big-00001-of-00003.gguf"), put(home / ".cache/llama.cpp/mmproj-x.gguf")
    put(home / ".lmstudio/models/org/repo/studio.Q4_K_M.gguf")
    put(home / ".ollama/models/blobs" / DIGEST.replace(":", "-"), 7)
    manifest(home, "registry.ollama.ai/library/llama3.2/latest")
    manifest(home, "registry.ollama.ai/someone/tuned/q4")
    manifest(home, "hf.co/org/repo/Q8_0")
    manifest(home, "registry.ollama.ai/library/broken/latest", "{")
    manifest(home, "registry.ollama.ai/library/empty/latest", '{"layers": []}')
    hub = home / ".cache/huggingface/hub"
    put(hub / "models--org--net/snapshots/1/config.json"), put(hub / "models--org--net/snapshots/1/model.safetensors")
    put(hub / "models--org--quants/snapshots/1/net-Q4_0.gguf"), put(hub / "datasets--a--b/snapshots/1/x.gguf")
    put(hub / "models--org--configs/snapshots/1/config.json")
    return home


def test_everything_that_is_here(home: Path) -> None:
    found = {model.name: model for model in local_models()}
    assert {name: model.place for name, model in found.items()} == {
        "mine": "this directory",
        "second": "models",
        "unsloth_x": "llama.cpp",
        "studio.Q4_K_M": "LM Studio",
        "llama3.2:latest": "Ollama",
        "someone/tuned:q4": "Ollama",
        "hf.co/org/repo:Q8_0": "Ollama",
        "org/net": "Hugging Face",
        "org/quants/net-Q4_0.gguf": "Hugging Face",
    }
    assert found["mine"].nbytes == 5 and found["llama3.2:latest"].nbytes == 7
    assert "llama3.2:latest" in listed(list(found.values()))


def test_names(home: Path) -> None:
    blob = home / ".ollama/models/blobs" / DIGEST.replace(":", "-")
    assert find_model("llama3.2") == find_model("llama3.2:latest") == find_model("someone/tuned:q4") == blob
    assert find_model("unsloth_x.gguf") == find_model("unsloth_x") == home / ".cache/llama.cpp/unsloth_x.gguf"
    assert find_model("nothing") is None and find_model("org/net") is None


def test_places_that_the_environment_names(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LLAMA_CACHE", "HF_HUB_CACHE", "OLLAMA_MODELS"):
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    put(tmp_path / "elsewhere/moved.gguf")
    assert [model.name for model in local_models()] == ["mine", "second", "moved", "studio.Q4_K_M"]


def test_serve_without_a_model_lists_them(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert main(["serve"]) == 2
    out, err = capsys.readouterr()
    assert "llama3.2:latest" in out and "Ollama" in out
    assert err.startswith("stratakv: error: serve needs -m MODEL: name one of them") and err.count("\n") == 1
    monkeypatch.setenv("HOME", str(home / "empty"))
    monkeypatch.chdir(home)
    assert main(["serve"]) == 2
    out, err = capsys.readouterr()
    assert not out and "there is no GGUF file here" in err


def test_commands_take_such_a_name(home: Path) -> None:
    blob = home / ".ollama/models/blobs" / DIGEST.replace(":", "-")
    blob.unlink()
    blob.symlink_to(embedded_model())
    described = describe_model("llama3.2")
    assert described.name == "llama3.2" and described.path == blob and described.gguf is not None
