"""What is compared without gradients: by rank near to them, and used where they can't be had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_models import loaded_tiny

from stratakv.assets import tuning_text
from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import cut, read_text
from stratakv.profile import resolve
from stratakv.profile.spans import NONE, Spans
from stratakv.tune import measurer as measurer_module
from stratakv.tune.forward import FORWARD_PASSES, forward_damage
from stratakv.tune.gradient import NotDifferentiableError, gradient_damage, passes_of
from stratakv.tune.measurer import Measurer
from stratakv.tune.replay import Replay
from stratakv.tune.sensitivity import by_gradient
from stratakv.tune.store import Store

TYPES = ("turbo3", "turbo4", "q8_0")


def test_layers_rank_about_as_by_gradients(loaded: LoadedModel) -> None:
    ids = cut(read_text(tuning_text()), loaded.tokenizer, 96, 1).ids
    rough, fine = forward_damage(loaded, ids[0], TYPES), gradient_damage(loaded, ids[0], TYPES, 2, seed=0)
    assert rough.shape == fine.shape == (12, 2, 3)
    assert spearmanr(rough.ravel(), fine.ravel()).statistic > 0.7
    measured = Replay(loaded, ids).kld(resolve("turbo4", loaded.geometry)).mean()
    assert rough[..., 1].sum() == pytest.approx(measured), "the type that was tried is as large as measured"


@pytest.mark.parametrize("architecture", ["qwen3_next", "gpt2", "deepseek_v3"])
def test_every_layer_of_any_chain_gets_a_number(architecture: str) -> None:
    damage = forward_damage(loaded_tiny(architecture), some_ids(), ("q8_0", "q4_0"))
    assert (damage[..., 1] > damage[..., 0]).all() and (damage > 0).all()


def test_it_takes_as_many_passes_as_are_counted() -> None:
    loaded, calls = loaded_tiny("llama"), list[int]()
    for index, layer in enumerate(loaded.model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    forward_damage(loaded, some_ids(), ("q8_0", "q4_0"))
    assert len(calls) == FORWARD_PASSES * 4


def test_types_that_lose_nothing_do_no_damage() -> None:
    damage = forward_damage(loaded_tiny("llama"), some_ids(), ("f32",))
    np.testing.assert_array_equal(damage, np.zeros((4, 2, 1)))


def test_shared_layers_can_only_be_differentiated() -> None:
    with pytest.raises(UserError, match="neither differentiated nor run layer by layer"):
        forward_damage(loaded_tiny("gemma4_text"), some_ids(), ("q8_0", "q4_0"))


class _NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


@pytest.mark.parametrize("cut_by", [_NoDerivative.apply, torch.Tensor.detach])
def test_a_model_without_gradients_falls_back_and_says_so(cut_by: Any, tmp_path: Any) -> None:
    loaded, said = loaded_tiny("llama"), list[str]()
    for module in loaded.model.modules():
        if type(module).__name__ == "LlamaDecoderLayer":
            module.register_forward_hook(lambda _m, _a, out: cut_by(out))
    with pytest.raises(NotDifferentiableError):
        gradient_damage(loaded, some_ids(), ("q8_0", "q4_0"), 1, seed=0)
    store = Store(tmp_path, {"model": "x"})
    measurer = Measurer(loaded, some_ids()[None].repeat(2, 1), store, say=said.append)
    found = by_gradient(measurer, ("q8_0", "q4_0"), (("q8_0", "q8_0"),) * 4, 2, 1, (NONE,))[NONE]
    assert np.isfinite(found.damage).all() and (found.damage > 0).all()
    assert len([line for line in said if "can't be differentiated" in line and "forward passes alone" in line]) == 1
    assert not any("spans" in line for line in said), "none were asked for"
    assert measurer.costs["gradient"].passes == 2 * FORWARD_PASSES
    assert any(line.startswith(f"gradient: {2 * passes_of(1)} forward passes of 24 tokens") for line in said)


def test_without_gradients_spans_are_not_seen_and_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def fails(*_: Any) -> None:
        raise NotDifferentiableError("no gradient comes to K of KV layer 0")

    loaded, said, spans = loaded_tiny("llama"), list[str](), Spans(1, "q8_0")
    monkeypatch.setattr(measurer_module, "span_damage", fails)
    measurer = Measurer(loaded, some_ids()[None], Store(tmp_path, {"model": "x"}), say=said.append)
    found = by_gradient(measurer, ("q8_0", "q4_0"), (("q8_0", "q8_0"),) * 4, 1, 1, (NONE, spans))
    np.testing.assert_array_equal(found[NONE].damage, found[spans].damage)
    assert any("which don't see what spans save: --recent and --first set them" in line for line in said)


def some_ids() -> torch.Tensor:
    return torch.randint(3, 97, (24,), generator=torch.Generator().manual_seed(1))
