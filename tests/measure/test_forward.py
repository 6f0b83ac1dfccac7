"""Numbers come from the pages and from nowhere else."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stratakv.assets import embedded_model
from stratakv.cli import demo
from stratakv.engine.cache.layers import PackedLayer
from stratakv.engine.load import LoadedModel
from stratakv.measure.corpus import Contexts
from stratakv.measure.forward import Reading, context_logits
from stratakv.measure.run import measure
from stratakv.profile import resolve

PROFILES = ["f32", "q4_0_rot/turbo3", *demo.PROFILES]


def test_a_lossless_profile_gives_the_perplexity_of_a_dense_model(loaded: LoadedModel, contexts: Contexts) -> None:
    path = embedded_model()
    dense = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        scores = dense(contexts.ids, use_cache=False).logits[:, 64:127].double().log_softmax(-1)
    expected = -scores.gather(-1, contexts.ids[:, 65:, None])[..., 0].numpy()
    _, (ours,) = measure(loaded, contexts, [resolve("f32", loaded.geometry)], batch=50, against=False)
    np.testing.assert_allclose(ours.nll, expected, atol=1e-4)
    assert np.exp(ours.nll.mean()) == pytest.approx(np.exp(expected.mean()), rel=1e-5)


def test_a_reading_that_waits_holds_no_logits(loaded: LoadedModel, contexts: Contexts) -> None:
    """Every profile's reading waits while the others are at the same piece."""
    reading = iter(Reading(loaded, resolve("turbo4", loaded.geometry), contexts.ids[0], 50))
    for piece in reading:
        storage = weakref.ref(piece.untyped_storage())
        del piece
        assert storage() is None, "the suspended reading keeps it"


@pytest.mark.parametrize("text", PROFILES)
def test_what_update_was_given_is_never_read_again(
    text: str, loaded: LoadedModel, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = resolve(text, loaded.geometry)
    clean = context_logits(loaded, profile, contexts.ids[0], 50).logits
    original = PackedLayer.update

    def update(layer: PackedLayer, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        handles = original(layer, k, v, *args, **kwargs)
        k.fill_(float("nan"))
        v.fill_(float("nan"))
        return handles

    monkeypatch.setattr(PackedLayer, "update", update)
    assert torch.equal(context_logits(loaded, profile, contexts.ids[0], 50).logits, clean)


@pytest.mark.parametrize("text", PROFILES)
def test_one_flipped_byte_in_a_middle_layer_changes_the_logits(
    text: str, loaded: LoadedModel, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = resolve(text, loaded.geometry)
    clean = context_logits(loaded, profile, contexts.ids[0], 128).logits
    original = PackedLayer.update

    def update(layer: PackedLayer, *args: Any, **kwargs: Any) -> Any:
        handles = original(layer, *args, **kwargs)
        if layer.name == "layer 6":
            layer.pool.tiles[layer.tables[0][0], 0, layer.pool.layout.tile_bytes // 3] ^= 0x55
        return handles

    monkeypatch.setattr(PackedLayer, "update", update)
    assert not torch.equal(context_logits(loaded, profile, contexts.ids[0], 128).logits, clean)


def test_the_piece_size_matters_little(loaded: LoadedModel, contexts: Contexts) -> None:
    """Every token's bytes are the same up to rounding before them, whatever is fed together."""
    profile = [resolve("turbo4", loaded.geometry)]
    _, (whole,) = measure(loaded, contexts, profile, batch=512)
    _, (pieces,) = measure(loaded, contexts, profile, batch=48)
    assert whole.kld is not None
    assert pieces.kld is not None
    assert pieces.kld.mean() == pytest.approx(whole.kld.mean(), rel=0.02)
    assert pieces.nll.mean() == pytest.approx(whole.nll.mean(), abs=1e-3)


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 31, 32, 1000])
def test_any_piece_size_scores_the_same_predictions(batch: int, loaded: LoadedModel, contexts: Contexts) -> None:
    profile = resolve("f32", loaded.geometry)
    whole = context_logits(loaded, profile, contexts.ids[0, :32], 32).logits
    pieces = context_logits(loaded, profile, contexts.ids[0, :32], batch).logits
    assert whole.shape == pieces.shape == (15, 4096)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(pieces, whole, atol=1e-3, rtol=1e-4)


def test_logits_are_held_for_one_piece(
    loaded: LoadedModel, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half of 32,768 tokens of Gemma's 262,144 words is 16 GiB of float32."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive = []

    class Watched(Reading):
        def __iter__(self) -> Iterator[torch.Tensor]:
            for logits in super().__iter__():
                alive.append(sum(each() is not None for each in held))
                held.append(weakref.ref(logits))
                yield logits
                del logits

    monkeypatch.setattr("stratakv.measure.run.Reading", Watched)
    profiles = [resolve(text, loaded.geometry) for text in ("turbo4", "turbo3")]
    measure(loaded, contexts, profiles, batch=16)
    assert len(held) == len(contexts.ids) * 3 * 4
    assert max(alive) <= 2, "the reference's and the profile's before"


def test_what_was_allocated_is_told(loaded: LoadedModel, contexts: Contexts) -> None:
    profile = resolve("turbo4", loaded.geometry)
    assert context_logits(loaded, profile, contexts.ids[0], 50).allocated == profile.bytes_at(128), "a whole page"
    assert context_logits(loaded, profile, contexts.ids[0, :20], 20).allocated == profile.bytes_at(128), "a page begun"


def test_models_that_give_all_logits_are_cut_the_same(
    loaded: LoadedModel, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = resolve("f32", loaded.geometry)
    expected = context_logits(loaded, profile, contexts.ids[0], 100).logits
    forward = loaded.model.forward

    def without(input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
        return forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    monkeypatch.setattr(loaded.model, "forward", without)
    torch.testing.assert_close(context_logits(loaded, profile, contexts.ids[0], 100).logits, expected)
