"""Gradients predict KLD: in sum, by rank, and as exactly as a second-order formula can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_models import tiny_model

from stratakv.assets import tuning_text
from stratakv.engine.attention import use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.load import LoadedModel
from stratakv.measure.corpus import cut, read_text
from stratakv.measure.divergence import Floats
from stratakv.profile import Profile, resolve
from stratakv.tune.gradient import gradient_damage
from stratakv.tune.replay import Replay

TYPES = ("turbo4", "turbo5")


@pytest.fixture(scope="module")
def ids(loaded: LoadedModel) -> torch.Tensor:
    return cut(read_text(tuning_text()), loaded.tokenizer, 96, 4).ids


@pytest.fixture(scope="module")
def damage(loaded: LoadedModel, ids: torch.Tensor) -> Floats:
    return np.mean([gradient_damage(loaded, each, TYPES, 2, seed=i) for i, each in enumerate(ids)], axis=0)


def test_the_sum_over_layers_is_the_kld_of_a_uniform_profile(
    loaded: LoadedModel, ids: torch.Tensor, damage: Floats
) -> None:
    replay = Replay(loaded, ids)
    for column, name in enumerate(TYPES):
        measured = replay.kld(resolve(name, loaded.geometry)).mean()
        assert damage[..., column].sum() == pytest.approx(measured, rel=0.35)
    assert not any(parameter.grad is not None for parameter in loaded.model.parameters())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters()), "as it was"


def test_cells_rank_as_their_own_kld_does(loaded: LoadedModel, ids: torch.Tensor, damage: Floats) -> None:
    """Each cell alone against an f16 cache: no noise of other layers' errors, so few contexts are enough."""
    replay = Replay(loaded, ids)
    f16 = resolve("f16", loaded.geometry).pairs
    replay.record(Profile("f16", loaded.geometry, f16))
    measured = np.empty((12, 2))
    for i in range(12):
        for side, pair in enumerate((("turbo4", "f16"), ("f16", "turbo4"))):
            measured[i, side] = replay.kld(Profile("cell", loaded.geometry, (*f16[:i], pair, *f16[i + 1 :]))).mean()
    assert spearmanr(damage[..., 0].ravel(), measured.ravel()).statistic > 0.8


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "deepseek_v3", "qwen3_next", "gemma4_text"])
def test_every_layer_of_any_architecture_gets_a_number(architecture: str) -> None:
    model = use(tiny_model(architecture))
    loaded = LoadedModel(model, None, architecture, "0", geometry_of(model.config, architecture), 0)
    ids = torch.randint(3, 97, (24,), generator=torch.Generator().manual_seed(1))
    damage = gradient_damage(loaded, ids, ("q8_0", "q4_0"), 1, seed=0)
    assert damage.shape == (len(loaded.geometry.kv_layers), 2, 2)
    assert (damage[..., 1] > damage[..., 0]).all()
    assert (damage[..., 0] > 0).all()
