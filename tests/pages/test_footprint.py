"""Bytes before a cache exists are the bytes that it then allocates."""

from __future__ import annotations

import pytest
import torch
from geometries import plain, sliding
from tiny_models import tiny_model

import stratakv
from stratakv.engine.cache.geometry import geometry_of
from stratakv.pages.footprint import LONGEST, allocated_bytes, longest_context
from stratakv.profile import LayerGeometry, ModelGeometry, resolve
from stratakv.profile.spans import PAGE_TOKENS as PAGE


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("tokens", [1, PAGE - 1, PAGE, PAGE + 1, 300])
def test_as_a_real_cache_allocates(model_type, tokens):
    model = stratakv.use(tiny_model(model_type))
    profile = resolve("q8_0/f16", geometry_of(model.config))
    cache = stratakv.KVCache(model.config, profile)
    most = 0
    with torch.inference_mode():
        for step in range(0, tokens, 3):
            model(torch.full((1, min(3, tokens - step)), 5), past_key_values=cache)
            most = max(most, cache.nbytes())
    expected = allocated_bytes(profile, tokens, 3)
    if model_type == "llama":
        assert most == expected
    else:
        assert (
            most <= expected <= most + PAGE * profile.bytes_per_token
        )  # the worst place of a window against the pages


def test_windows_bound_what_their_layers_take():
    profile = resolve("turbo4", sliding())
    full = PAGE * sum(profile.layer_bytes(2))
    windowed = PAGE * (sum(profile.layer_bytes(0)) + sum(profile.layer_bytes(1)))
    pages = -(-100_000 // PAGE)
    assert (
        allocated_bytes(profile, 100_000, 1) == pages * full + (1024 // PAGE + 1) * windowed
    )  # that the window touches
    assert allocated_bytes(profile, 100_000) == pages * full + ((1024 + 512) // PAGE + 1) * windowed  # and 512 more


@pytest.mark.parametrize("memory", [0, 1, PAGE * 3167 + 5, 10**6, 10**9, 2**36])
def test_the_longest_context_fits_and_one_more_page_does_not(memory):
    profile = resolve("turbo4", plain(12))
    longest = longest_context(profile, memory)
    assert allocated_bytes(profile, longest) <= memory or longest == 0
    assert allocated_bytes(profile, longest + 1) > memory
    assert longest % PAGE == 0


def test_windows_alone_never_run_out():
    layers = tuple(LayerGeometry(i, i, "sliding", (128, 128), 1, 4, window=512) for i in range(4))
    profile = resolve("turbo4", ModelGeometry("windows", layers))
    assert longest_context(profile, allocated_bytes(profile, 10**6)) == LONGEST
