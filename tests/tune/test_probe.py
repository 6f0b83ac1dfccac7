"""Dangers are found where they are, and only there."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import tiny_model

from stratakv.assets import tuning_text
from stratakv.engine.attention import use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.load import LoadedModel
from stratakv.measure.corpus import cut, read_text
from stratakv.tune.probe import findings, format_probe, probe, recommendation


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


def test_words_of_made_up_data() -> None:
    row = {"ordinal": 0, "ratio": 1.0, "k_bias_share": None, "k_damage": 0.3, "v_damage": 0.1}
    data: dict[str, Any] = {"layers": [row], "sinks": [], "dangerous": [], "type": "turbo4", "limit": 0.02}
    data |= {"uniform_kld": 0.4, "findings": []}
    assert findings(data) == []
    assert "start from q8_0/turbo4 (75% of the damage is K's)" in recommendation(data)
