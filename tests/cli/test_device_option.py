"""--device in the commands that run a model: refused in words where there is no such GPU, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stratakv.cli.main import main
from stratakv.engine import load
from stratakv.engine.load import load_model
from stratakv.measure.results import conditions
from stratakv.tune.split import open_store

COMMANDS = {
    "generate": ["-p", "a"],
    "chat": [],
    "compare": ["-f", "TEXT", "turbo4"],
    "perplexity": ["-f", "TEXT"],
    "needles": ["-f", "TEXT", "turbo4"],
    "tune": ["--bpv", "4.5"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_gpu_that_is_not_there_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(load, "load_weights", no_weights)
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven " * 2000)
    given = [str(text) if word == "TEXT" else word for word in COMMANDS[command]]
    for device, words in (("cuda", "torch sees no GPU here"), ("abacus", "it must be cpu, cuda or cuda:N")):
        assert main([command, "-m", "embedded", *given, "--device", device]) == 2
        assert f"--device {device}: {words}" in capsys.readouterr().err


def test_a_model_moves_as_a_whole() -> None:
    loaded = load_model("embedded", device="meta")
    assert loaded.packed is None and {each.device.type for each in loaded.model.parameters()} == {"meta"}


def test_what_reads_the_pages_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The model stays on the CPU here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("stratakv.kernels.triton.kernel._without_launcher", lambda: None)
    moved: list[str] = []
    monkeypatch.setattr(load, "_move", lambda model, device: moved.append(device))
    command = ["generate", "-m", "embedded", "-p", "a", "-n", "1", "--temp", "0"]
    assert main([*command, "--device", "cuda:1"]) == 2 and "the first is cuda:0" in capsys.readouterr().err
    assert main([*command, "--device", "cuda"]) == 0 and moved == ["cuda"]
    assert "on the NVIDIA H100 pages are read with kernel triton" in capsys.readouterr().err


def test_results_and_kept_measurements_name_another_device(tmp_path: Path) -> None:
    loaded = load_model("embedded", packed=False)
    contexts: Any = SimpleNamespace(
        text=SimpleNamespace(name="a", sha256="b"), tokens=9, scored=4, ids=[1, 2], context=8, warnings=()
    )
    stores = [open_store(loaded, contexts, tmp_path, "a")]
    assert "device" not in conditions(loaded, contexts, 8, "")
    loaded.model.to("meta")  # type: ignore[arg-type]
    stores.append(open_store(loaded, contexts, tmp_path, "a"))
    assert conditions(loaded, contexts, 8, "")["device"] == "meta"
    stores[0].put("score", "0", {"x": 1})
    assert (stores[0].get("score", "0") or {})["x"] == 1 and stores[1].get("score", "0") is None
