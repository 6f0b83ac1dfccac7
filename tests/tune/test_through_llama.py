"""Sensitivities inside llama.cpp: what is rewritten, and the files that come out. Needs the extra `gguf`."""

from __future__ import annotations

import ctypes
import gc
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from stratakv import UserError, load_model
from stratakv.assets import embedded_model, tuning_text
from stratakv.cli.main import main
from stratakv.engine.describe import describe_model
from stratakv.measure.corpus import Contexts, read_text
from stratakv.measure.run import measure
from stratakv.profile import Profile, load_profile, resolve

needs_extra = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs the extra `gguf`: llama-cpp-python")


@pytest.fixture(scope="module")
def probe() -> Any:
    from stratakv.tune.llama_probe import LlamaProbe

    made = LlamaProbe(embedded_model(), 96, 1)
    yield made
    made.close()


@needs_extra
def test_every_cell_is_found_with_its_shape(probe: Any) -> None:
    assert probe.architecture == "llama"
    assert probe.shapes == {(layer, side): (128, 2) for layer in range(12) for side in "kv"}


@needs_extra
def test_a_probe_outlives_another() -> None:
    from stratakv.tune.llama_probe import LlamaProbe

    first, second = (LlamaProbe(embedded_model(), 16, 1) for _ in range(2))
    second.close()
    del second
    gc.collect()
    # callbacks made now would come where a log function that went with its probe has been
    called: list[int] = []
    others = [ctypes.CFUNCTYPE(None)(lambda: called.append(1)) for _ in range(256)]
    first.close()  # llama.cpp logs here
    assert others and not called


@needs_extra
def test_lossless_types_change_nothing_and_coarse_ones_do(probe: Any) -> None:
    ids = probe.tokenize(read_text(tuning_text()).content[:2000])[:96]
    plain = probe.logits(ids, {})
    assert plain.shape == (47, 4096)
    assert torch.equal(plain, probe.logits(ids, {(3, "k"): "f32", (7, "v"): "f32"}))
    assert torch.equal(plain, probe.logits(ids, {}))
    assert not torch.equal(plain, probe.logits(ids, {(3, "k"): "turbo2"}))


@needs_extra
def test_a_cell_s_damage_is_that_of_our_own_engine(probe: Any) -> None:
    from stratakv.measure.divergence import predictions

    text = read_text(tuning_text())
    ids = [probe.tokenize(text.content[:6000])[i * 96 : (i + 1) * 96] for i in range(3)]
    loaded = load_model("embedded", exact=True)
    contexts = Contexts(text, torch.tensor(ids), 288, ())
    for layer, side in ((0, "k"), (5, "v"), (11, "k")):
        damaged = ((probe.logits(i, {(layer, side): "turbo2"}), probe.logits(i, {})) for i in ids)
        theirs = [predictions(logits, predictions(reference)).kld.mean() for logits, reference in damaged]
        pairs = [("f16", "f16")] * 12
        pairs[layer] = ("turbo2", "f16") if side == "k" else ("f16", "turbo2")
        profile = Profile("one", loaded.geometry, tuple(pairs))
        _, (scores,) = measure(loaded, contexts, [profile], batch=96)
        assert scores.kld is not None
        assert float(scores.kld.mean()) == pytest.approx(sum(theirs) / len(theirs), rel=0.25)


@needs_extra
def test_the_command_writes_a_profile_and_its_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / "found"
    words = ["sensitivity", "--through", "llama.cpp", "-m", str(embedded_model()), "-f", str(tuning_text())]
    assert main([*words, "-c", "64", "--chunks", "2", "--types", "turbo4,turbo3", "-t", "1", "-o", str(name)]) == 0
    assert "K turbo4" in capsys.readouterr().out
    description = describe_model("embedded")
    profile = load_profile(f"{name}.json", description.geometry, description.fingerprint)
    assert profile.bytes_per_token <= resolve("turbo4", description.geometry).bytes_per_token
    evidence = json.loads(Path(f"{name}.evidence.json").read_text())
    assert evidence["schema"] == "stratakv/tune/1" and evidence["through"] == "llama.cpp"
    assert len(evidence["sensitivity"]["cells"]) == 12 * 2 * 3
    assert all(cell["kld"] >= 0 for cell in evidence["sensitivity"]["cells"])
    sizes = [point["bytes_per_token"] for point in evidence["front"]]
    assert sizes == sorted(sizes)


def test_a_file_that_is_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sensitivity", "--through", "llama.cpp", "-f", str(tuning_text()), "-o", str(tmp_path / "x")]
    assert main([*words, "-m", str(tmp_path / "none.gguf")]) == 2
    assert "a GGUF file is needed" in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from stratakv.tune import llama_probe

    monkeypatch.setattr(llama_probe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'stratakv\[gguf\]'"):
        llama_probe.LlamaProbe(embedded_model(), 64, 1)
