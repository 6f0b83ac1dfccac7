"""KVCache inside transformers: generation of every kind, cropping, batches, honest bytes, pages as the only source."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from packed_views import states_forgotten
from tiny_models import tiny_model
from transformers import DynamicCache

from stratakv import KVCache, UserError, use
from stratakv.pages.layout import PAGE_TOKENS

GREEDY = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0}


def _prompt(batch: int = 1, tokens: int = 9) -> torch.Tensor:
    return torch.randint(3, 97, (batch, tokens), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def model():
    return use(tiny_model("llama"))


@pytest.fixture(scope="module")
def sliding():
    return use(tiny_model("gemma2"))


@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        {**GREEDY, "num_beams": 3},
        {**GREEDY, "num_beams": 4, "num_return_sequences": 2},
        {**GREEDY, "prefill_chunk_size": 4},
        {**GREEDY, "do_sample": True, "top_k": 5},
        {**GREEDY, "do_sample": True, "num_return_sequences": 3},
        {**GREEDY, "prompt_lookup_num_tokens": 3},
    ],
    ids=["greedy", "beam", "beams returned", "chunked prefill", "sampling", "several", "prompt lookup (crop)"],
)
def test_generate_gives_the_stock_cache_s_tokens(model, settings) -> None:
    ids = _prompt()
    torch.manual_seed(0)
    expected = model.generate(ids, past_key_values=DynamicCache(config=model.config), **settings)
    torch.manual_seed(0)
    assert torch.equal(model.generate(ids, past_key_values=KVCache(model.config, "f32"), **settings), expected)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mistral"])
@pytest.mark.parametrize("extra", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_left_padded_batch(model_type: str, extra) -> None:
    model = use(tiny_model(model_type))
    ids = _prompt(3, 9)
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    ids[2, :7], mask[2, :7] = 0, 0
    arguments = {**GREEDY, **extra, "attention_mask": mask}
    expected = model.generate(ids, past_key_values=DynamicCache(config=model.config), **arguments)
    assert torch.equal(model.generate(ids, past_key_values=KVCache(model.config, "f32"), **arguments), expected)


@torch.no_grad()
def test_crop_forgets_the_last_tokens(model) -> None:
    ids, cache = _prompt(1, 300), KVCache(model.config, "turbo4")
    full = KVCache(model.config, "turbo4")
    model(ids[:, :200], past_key_values=cache)
    model(ids[:, 200:], past_key_values=cache)
    cache.crop(-150)
    assert cache.get_seq_length() == 150
    model(ids[:, :150], past_key_values=full)
    assert cache.nbytes() == full.nbytes()
    again = model(ids[:, 150:160], past_key_values=cache).logits
    torch.testing.assert_close(again, model(ids[:, 150:160], past_key_values=full).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sliding_pages_are_freed(sliding) -> None:
    cache = KVCache(sliding.config, "turbo4")
    for piece in _prompt(1, 1000).split(100, dim=1):
        sliding(piece, past_key_values=cache)
    windowed, full = cache.layers[0], cache.layers[1]
    assert windowed.pages.used <= 1 + -(-100 // PAGE_TOKENS) + 1
    assert full.pages.used == -(-1000 // PAGE_TOKENS)
    cache.reset()
    assert cache.nbytes() == 0


@pytest.mark.parametrize("profile", ["turbo4", "q8_0/turbo3", "edges3", "f16"])
@torch.no_grad()
def test_bytes_are_the_types_arithmetic_within_a_page(profile: str) -> None:
    model = use(tiny_model("qwen3"))
    batch, tokens = 2, 333
    cache = KVCache(model.config, profile if profile != "edges3" else "first1,last1: q8_0/turbo4; rest: turbo4")
    model(_prompt(batch, tokens), past_key_values=cache)
    arithmetic = batch * tokens * cache.profile.bytes_per_token
    page_bytes = sum(layer.pool.layout.page_bytes for layer in cache.layers)
    assert arithmetic <= cache.nbytes() <= arithmetic + batch * page_bytes
    pages = [len({page for table in layer.tables for page in table}) for layer in cache.layers]
    sizes = [layer.pool.layout.page_bytes for layer in cache.layers]
    assert cache.nbytes() == sum(count * size for count, size in zip(pages, sizes, strict=True))


@pytest.mark.parametrize("profile", ["f16", "q8_0", "turbo4", "turbo2", "q4_0_rot", "mode7"])
def test_the_pages_are_the_only_source(profile: str) -> None:
    """States given to update() are filled with nan once it returned: same logits. One stored byte flipped: other logits."""
    model = use(tiny_model("llama"))
    ids = _prompt(1, 40)
    with torch.no_grad():
        clean = model(ids, past_key_values=KVCache(model.config, profile)).logits
        with states_forgotten():
            assert torch.equal(model(ids, past_key_values=KVCache(model.config, profile)).logits, clean)
        cache = KVCache(model.config, profile)
        model(ids[:, :-1], past_key_values=cache)
        layer = cache.layers[2]
        # a code byte of token 3's K and its scale's high byte would both do; the sign bit of a code changes one value
        position = int(layer.pool.layout.positions[3, layer.pool.layout.k_bytes - 1])
        layer.pool.tiles[layer.tables[0][0], 0, position] ^= 0x88
        assert not torch.equal(model(ids[:, -1:], past_key_values=cache).logits[:, -1], clean[:, -1])


@torch.no_grad()
def test_inf_and_nan_name_layer_and_side(model) -> None:
    good, bad = torch.randn(1, 2, 3, 8), torch.full((1, 2, 3, 8), float("nan"))
    cache = KVCache(model.config, "turbo4")
    last = len(cache.layers) - 1

    def step(poisoned: dict[int, str], layers: int = last + 1) -> None:
        for layer in range(layers):
            sides = poisoned.get(layer, "")
            cache.update(*(bad if side in sides else good for side in "KV"), layer)

    step({})
    for poisoned, named in (({1: "V"}, "layer 1, V"), ({0: "K"}, "layer 0, K"), ({last: "KV", 2: "VK"}, "layer 2, K")):
        with pytest.raises(UserError, match=f"{named}: non-finite values"):
            step(poisoned)
        assert {layer.get_seq_length() for layer in cache.layers} == {3}, "the cache is as it was"
    step({})
    assert {layer.get_seq_length() for layer in cache.layers} == {6}
    # a model that leaves the last layers out: the next step finds it
    step({0: "V"}, layers=2)
    with pytest.raises(UserError, match="layer 0, V"):
        step({}, layers=2)
    assert {layer.get_seq_length() for layer in cache.layers} == {6}
    step({0: "V"}, layers=2)
    cache.reset()
    step({})
    assert {layer.get_seq_length() for layer in cache.layers} == {3}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("attention", ["stratakv", "eager"])
@torch.no_grad()
def test_a_poisoned_layer_is_named_in_the_same_call(kind: str, attention: str) -> None:
    """And the cache is as it was, windows too: once the weights are mended it goes on."""
    model = use(tiny_model(kind))
    model.set_attn_implementation(attention)
    ids = _prompt(1, 160)
    cache = KVCache(model.config, "q8_0/turbo4")
    expected = model(ids, past_key_values=KVCache(model.config, "q8_0/turbo4")).logits[:, 140:]
    model(ids[:, :140], past_key_values=cache)
    good = [layer.self_attn.v_proj.weight.clone() for layer in model.model.layers]
    for layer in (2, 3):
        model.model.layers[layer].self_attn.v_proj.weight.fill_(1e30)
    with pytest.raises(UserError, match="layer 2, V: values too large for turbo4, whose f16 scales go up to 65504"):
        model(ids[:, 140:], past_key_values=cache)
    for layer, weight in zip(model.model.layers, good, strict=True):
        layer.self_attn.v_proj.weight.copy_(weight)
    logits = model(ids[:, 140:], past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)


_MEMORY_SCRIPT = """
import ctypes, gc, psutil, torch
from tiny_models import tiny_model
from stratakv import KVCache

cache = KVCache(tiny_model("llama").config, "turbo4")

def feed(chunks):
    for _ in range(chunks):
        cache.update(torch.randn(1, 32, 512, 128), torch.randn(1, 32, 512, 128), 0)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of freed temporaries, 32 to 40 MiB, is no copy
    return psutil.Process().memory_info().rss

before = feed(1)
packed_before = cache.nbytes()
print(feed(15) - before, cache.nbytes() - packed_before, cache.nbytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="gives freed memory back by glibc's malloc_trim")
def test_no_dense_copy_lives_on() -> None:
    """8k tokens of 32 heads x 128 in one layer: f32 states are 256 MiB, packed turbo4 33 MiB; the process keeps the latter."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", _MEMORY_SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown, packed, whole = map(int, done.stdout.split())
    assert whole == 8192 * 32 * 132
    assert grown < packed + 8 * 2**20  # one chunk's f32 K or V


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@torch.no_grad()
def test_appending_costs_the_new_tokens_only(model_type: str) -> None:
    """Pages that are full are neither written nor moved again: marks put into them stay, at the same addresses."""
    cache = KVCache(use(tiny_model(model_type)).config, "turbo4")
    for layer, stored in enumerate(cache.layers):
        stored.record_past = True  # windows keep their past, so that there are full pages to look at
        cache.update(torch.randn(1, 2, 512, 8), torch.randn(1, 2, 512, 8), layer)
        pages = stored.tables[0][:4]
        stored.pool.memory[pages] = 0xA5
        base = stored.pool.base
        for tokens in (1, 200, 1, 7):
            cache.update(torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8), layer)
        assert stored.tables[0][:4] == pages and stored.pool.base == base
        assert bool((stored.pool.memory[pages] == 0xA5).all())
        assert stored.nbytes == -(-721 // PAGE_TOKENS) * stored.pool.layout.page_bytes


def test_profile_of_another_model_is_refused(model) -> None:
    other = tiny_model("gemma2")
    other.config.num_hidden_layers = 4
    from stratakv.engine.cache.geometry import geometry_of
    from stratakv.profile import resolve

    profile = resolve("turbo4", geometry_of(other.config))
    model_3 = tiny_model("qwen3_next")
    with pytest.raises(UserError, match="4 KV layers, the model has 2"):
        KVCache(model_3.config, profile)


def test_handles_decode_for_any_operation(model) -> None:
    cache = KVCache(model.config, "q8_0")
    k, v = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    key, value = cache.update(k, v, 0)
    assert key.shape == (1, 2, 5, 8) and key.dtype == torch.float32
    torch.testing.assert_close(key + 0, k, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cat([value, value], dim=2)[:, :, 5:], v, rtol=0, atol=0.03)
    torch.testing.assert_close(
        value.transpose(1, 2).reshape(1, 5, 16), v.transpose(1, 2).reshape(1, 5, 16), rtol=0, atol=0.03
    )
