"""What is not run again gives the same numbers as a whole run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from stratakv.assets import tuning_text
from stratakv.engine.attention import use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.load import LoadedModel
from stratakv.measure.corpus import cut, read_text
from stratakv.measure.run import measure
from stratakv.profile import Profile, resolve
from stratakv.tune.replay import Replay, decoder_layers

ARCHITECTURES = ("llama", "gemma2", "gpt2", "phi", "qwen3_next", "falcon_h1", "deepseek_v3", "lfm2", "gemma4_text")


def _profile(loaded: LoadedModel, line: str) -> Profile:
    return resolve(line, loaded.geometry)


def test_the_same_numbers_as_measuring_one_context_after_another(loaded: LoadedModel) -> None:
    contexts = cut(read_text(tuning_text()), loaded.tokenizer, 64, 3)
    profiles = [_profile(loaded, "turbo3"), _profile(loaded, "q4_0_rot/turbo4")]
    _, scores = measure(loaded, contexts, profiles, batch=64)
    replay = Replay(loaded, contexts.ids)
    for profile, each in zip(profiles, scores, strict=True):
        assert each.kld is not None
        np.testing.assert_allclose(replay.kld(profile), each.kld.mean(axis=1), rtol=2e-3)
    np.testing.assert_allclose(replay.kld(_profile(loaded, "f16")), 0, atol=1e-9)


@pytest.mark.parametrize("changed", [0, 5, 11])
def test_only_what_lies_above_a_change_is_run(loaded: LoadedModel, changed: int) -> None:
    ids = cut(read_text(tuning_text()), loaded.tokenizer, 48, 2).ids
    profile = _profile(loaded, f"{changed}: k=turbo2 v=turbo4; rest: turbo4")
    forwards = [vars(layer).get("forward") for layer in decoder_layers(loaded)]  # fused layers have their own
    whole = Replay(loaded, ids).kld(profile)
    replay = Replay(loaded, ids)
    base = replay.record(_profile(loaded, "turbo4"))
    before = replay.passes
    np.testing.assert_array_equal(replay.kld(profile), whole)
    assert replay.passes - before == pytest.approx(2 * (12 - changed) / 12)
    np.testing.assert_array_equal(replay.kld(_profile(loaded, "turbo4")), base)
    assert [vars(layer).get("forward") for layer in decoder_layers(loaded)] == forwards, "layers are put back"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture_gives_the_same_with_and_without(architecture: str) -> None:
    model = use(tiny_model(architecture))
    geometry = geometry_of(model.config, architecture)
    loaded = LoadedModel(model, None, architecture, "0", geometry, 0)
    ids = torch.randint(3, 97, (2, 24), generator=torch.Generator().manual_seed(1))
    last = len(geometry.kv_layers) - 1
    profile = resolve(f"{last}: q4_0_rot; rest: q8_0", geometry)
    whole = Replay(loaded, ids).kld(profile)
    replay = Replay(loaded, ids)
    replay.record(resolve("q8_0", geometry))
    np.testing.assert_allclose(replay.kld(profile), whole, rtol=1e-6, atol=1e-12)
    assert whole.min() > 0
