"""Profile: bytes, bpv, checks of types against head dims."""

from __future__ import annotations

import dataclasses

import pytest
from geometries import plain, sliding

from stratakv.errors import UserError
from stratakv.profile import LayerGeometry, ModelGeometry, Profile, resolve
from stratakv.profile.profile import ordinals_text, pair_text
from stratakv.profile.spans import PAGE_TOKENS as PAGE


def test_bytes_of_uniform_turbo4():
    profile = Profile("turbo4", plain(12), (("turbo4", "turbo4"),) * 12)
    assert profile.layer_bytes(5) == (2 * 66, 2 * 66)
    assert profile.bytes_per_token == 12 * 2 * 2 * 66
    assert profile.bpv == 4.125
    assert profile.bytes_at(1000) == 1000 * 12 * 264


def test_windows_bound_the_bytes_and_dims_of_k_and_v_are_apart():
    profile = Profile("q8_0/turbo4", sliding(), (("q8_0", "turbo4"),) * 3)
    assert profile.layer_bytes(2) == (8 * 34, 66)
    assert profile.bytes_at(512) == 512 * profile.bytes_per_token
    assert profile.bytes_at(8192) == 2 * 1024 * (4 * 34 + 66) + 8192 * (8 * 34 + 66)
    assert profile.bpv == pytest.approx(8 * (2 * 202 + 338) / (2 * 256 + 384))


def test_head_dim_64_is_not_padded():
    assert Profile("turbo4", plain(8, head_dim=64), (("turbo4", "turbo4"),) * 8).bpv == 4.25


def test_a_type_is_checked_against_each_layer_and_side():
    layers = (LayerGeometry(0, 0, "full", (128, 128), 1, 1), LayerGeometry(1, 1, "full", (128, 100), 1, 1))
    geometry = ModelGeometry("odd", layers)
    assert Profile("f16", geometry, (("turbo4", "f16"),) * 2).pairs[1] == ("turbo4", "f16")
    with pytest.raises(UserError, match=r"^KV layer 1, V: .*100"):
        Profile("turbo4", geometry, (("turbo4", "turbo4"),) * 2)


def test_unknown_type_and_models_without_a_cache():
    with pytest.raises(UserError, match=r"KV layer 0, K: .*turbo9.*turbo4"):
        Profile("x", plain(2), (("turbo9", "f16"),) * 2)
    with pytest.raises(UserError, match="mamba has no layer with a KV cache"):
        Profile("x", ModelGeometry("mamba", (LayerGeometry(0, None, "linear", (0, 0), 0, 0),)), ())
    with pytest.raises(ValueError, match="3 pairs for 2 KV layers"):
        Profile("x", plain(2), (("f16", "f16"),) * 3)


def test_profiles_are_immutable_and_hashable():
    profile = Profile("f16", plain(2), (("f16", "f16"),) * 2, evidence={"kld": [1]})
    assert hash(profile) == hash(dataclasses.replace(profile, evidence={"kld": [1]}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.name = "other"  # type: ignore[misc]


def test_words():
    assert pair_text(("turbo4", "turbo4")) == "turbo4"
    assert pair_text(("q8_0", "turbo4")) == "q8_0/turbo4"
    assert ordinals_text([5, 0, 1, 2, 7, 8]) == "0-2, 5, 7-8"
    assert ordinals_text([]) == ""


def test_bytes_a_token_with_spans_at_a_context():
    plain_, spanned = (
        resolve(text, plain(2, context=0)) for text in ("turbo4", "turbo4; recent: 2 pages; first: 1 page")
    )
    assert spanned.bytes_per_token == plain_.bytes_per_token == plain_.bytes_per_token_at(4 * PAGE) == 528
    assert spanned.bytes_per_token_at(4 * PAGE) == 2 * 520
    assert spanned.bytes_per_token_at(8192 * PAGE) == 529
    assert spanned.bpv_at(4 * PAGE) == pytest.approx(8.125)
    assert plain_.bpv_at(4 * PAGE) == plain_.bpv
    assert plain_.storages != spanned.storages
