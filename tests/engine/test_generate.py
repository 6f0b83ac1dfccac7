"""Streaming generation and conversations over one cache."""

from __future__ import annotations

import pytest
import torch
from packed_views import states_forgotten

from stratakv import KVCache, load_model, resolve
from stratakv.cli import demo
from stratakv.engine.conversation import Conversation
from stratakv.engine.generate import Sampling, generate

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def loaded():
    return load_model("embedded")


def test_stream_is_the_text_and_the_tokens_are_the_stock_ones(loaded) -> None:
    ids = loaded.tokenizer("It was a dark and stormy night, and", return_tensors="pt").input_ids
    pieces: list[str] = []
    result = generate(
        loaded,
        KVCache(loaded.model.config, "f32"),
        ids,
        new_tokens=30,
        sampling=GREEDY,
        emit=pieces.append,
        prefill_chunk=4,
    )
    stock = loaded.model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :]
    assert result.tokens == stock.tolist()
    assert "".join(pieces) == result.text == loaded.tokenizer.decode(stock, skip_special_tokens=True)
    assert len(pieces) > 5 and result.tokens_per_second > 0 and result.prompt_tokens == ids.shape[1]


def test_seed_repeats_a_draw(loaded) -> None:
    ids = loaded.tokenizer("The Count", return_tensors="pt").input_ids
    runs = [
        generate(
            loaded,
            KVCache(loaded.model.config, "turbo4"),
            ids,
            new_tokens=12,
            sampling=Sampling(seed=seed),
            emit=lambda text: None,
        ).tokens
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("profile", demo.PROFILES)
def test_generation_reads_pages_only(loaded, profile: str) -> None:
    """nan in what update() was given changes no token; a flipped byte of a middle layer changes the next logits."""
    ids = loaded.tokenizer("My dear friend, I have been", return_tensors="pt").input_ids

    def run(cache: KVCache) -> list[int]:
        return generate(loaded, cache, ids, new_tokens=8, sampling=GREEDY, emit=lambda text: None).tokens

    clean = run(KVCache(loaded.model.config, profile))
    cache = KVCache(loaded.model.config, profile)
    with states_forgotten():
        assert run(cache) == clean
    last = torch.tensor([[clean[-1]]])
    with torch.no_grad():
        before = loaded.model(last, past_key_values=cache).logits
        cache.crop(-1)
        layer = cache.layers[6]
        layout = layer.pool.layout
        layer.pool.tiles[layer.tables[0][0], 0, int(layout.positions[2, layout.k_bytes - 1])] ^= 0x40
        after = loaded.model(last, past_key_values=cache).logits
    assert not torch.equal(before, after)


def test_conversation_computes_only_what_is_new(loaded) -> None:
    profile = resolve("turbo4", loaded.geometry)
    talk = Conversation(loaded, profile)
    talk.ask("Where is the Count?", new_tokens=10, sampling=GREEDY, emit=lambda text: None)
    held = len(talk.held)
    second = talk.ask("And the castle?", new_tokens=10, sampling=GREEDY, emit=lambda text: None)
    assert second.prompt_tokens < len(talk.prompt_ids()) - 15 and held > 15
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    fresh = Conversation(loaded, profile)
    fresh.messages = talk.messages[:2]
    alone = fresh.ask("And the castle?", new_tokens=10, sampling=GREEDY, emit=lambda text: None)
    assert alone.tokens == second.tokens
