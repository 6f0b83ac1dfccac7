"""Dangers are found where they are, and only there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from stratakv.assets import tuning_text
from stratakv.engine.attention import use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import cut, read_text
from stratakv.profile import LayerGeometry, ModelGeometry, Profile
from stratakv.tune.probe import MEASURED, _dangerous, findings, format_probe, probe, recommendation


def _tiny(architecture: str) -> LoadedModel:
    model = use(tiny_model(architecture))
    return LoadedModel(model, None, architecture, "0", geometry_of(model.config, architecture), 0)


def _ids() -> torch.Tensor:
    return torch.randint(3, 97, (2, 24), generator=torch.Generator().manual_seed(1))


def test_the_embedded_model_has_none_of_them(loaded: LoadedModel) -> None:
    data = probe(loaded, cut(read_text(tuning_text()), loaded.tokenizer, 64, 2).ids)
    assert data["findings"] == []
    assert data["recommendation"].startswith("nothing dangerous")
    assert len(data["layers"]) == 12
    assert max(data["layers"], key=lambda row: row["v_damage"])["ordinal"] == 0, "V of layer 0 dwarfs the others"
    assert "none of the known dangers" in format_probe(data)


def test_a_large_bias_of_the_keys_is_found() -> None:
    loaded = _tiny("qwen2")
    with torch.no_grad():
        loaded.model.get_parameter("model.layers.1.self_attn.k_proj.bias").fill_(60.0)
    found = " ".join(probe(loaded, _ids())["findings"])
    assert "keys are much longer than values in 1 of 4 KV layers (KV layer 1" in found
    assert "k_proj has a large bias in 1 KV layers (KV layer 1" in found


def test_sinks_in_the_weights_are_found() -> None:
    data = probe(_tiny("gpt_oss"), _ids())
    assert data["sinks"] == [0, 1, 2, 3]
    assert "attention sinks are in the weights of 4 layers" in " ".join(data["findings"])


def test_a_single_dangerous_cell_is_measured_and_named(loaded: LoadedModel) -> None:
    ids = cut(read_text(tuning_text()), loaded.tokenizer, 64, 2).ids
    data = probe(loaded, ids, limit=5e-4)
    (cell,) = [each for each in data["dangerous"] if each["side"] == "v"]
    assert cell["ordinal"] == 0
    assert cell["kld"] > 5e-4
    assert "KV layer 0, V: turbo4 there alone costs" in " ".join(data["findings"])
    assert "0: turbo4/q8_0" in data["recommendation"]


def test_the_worst_cells_are_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """More cells are near the limit than are measured, and the one that is far beyond it is the last of them."""
    geometry = ModelGeometry("m", tuple(LayerGeometry(i, i, "full", (128, 128), 2, 4) for i in range(12)))
    predicted = np.full((12, 2), 0.011)
    predicted[11, 1] = 5.0
    measured: list[int] = []

    def kld(profile: Profile) -> np.ndarray:
        measured.append(next(i for i, pair in enumerate(profile.pairs) if pair != ("f16", "f16")))
        return np.array([predicted[measured[-1]].max()])

    replay: Any = SimpleNamespace(loaded=SimpleNamespace(geometry=geometry), kld=kld)
    (cell,) = _dangerous(replay, predicted, "turbo4", 0.02)
    assert (cell["ordinal"], cell["side"], len(measured)) == (11, "v", MEASURED)


def test_a_model_that_can_t_be_differentiated_is_probed_by_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _tiny("llama")
    for module in loaded.model.modules():
        if type(module).__name__ == "LlamaDecoderLayer":
            module.register_forward_hook(lambda _m, _a, out: out.detach())
    data = probe(loaded, _ids())
    assert "can't be differentiated" in format_probe(data) and data["rough"]
    assert all(row["k_damage"] > 0 and row["v_damage"] > 0 for row in data["layers"])


def test_too_little_memory_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratakv.tune.memory.free_memory", lambda: 1 << 20)
    with pytest.raises(UserError, match="gradients of 24 tokens need about .*give a smaller -c"):
        probe(_tiny("llama"), _ids())


def test_words_of_made_up_data() -> None:
    row = {"ordinal": 0, "ratio": 1.0, "k_bias_share": None, "k_damage": 0.3, "v_damage": 0.1}
    data: dict[str, Any] = {"layers": [row], "sinks": [], "dangerous": [], "type": "turbo4", "limit": 0.02}
    data |= {"uniform_kld": 0.4, "findings": []}
    assert findings(data) == []
    assert "start from q8_0/turbo4 (75% of the damage is K's)" in recommendation(data)
