"""Streaming generation and conversations over one cache."""

from __future__ import annotations

import pytest
import torch
from packed_views import states_forgotten
from tiny_models import loaded_tiny

from stratakv import KVCache, UserError, load_model, resolve
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


def test_the_blank_that_an_answer_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 2's tokenizer drops the blank that a text begins with: the prompt's last word ran into the answer's first."""
    tiny = loaded_tiny("llama")
    decode = lambda tokens, skip_special_tokens=True: "".join(f" w{token}" for token in tokens).removeprefix(" ")  # noqa: E731
    monkeypatch.setattr(tiny.tokenizer, "decode", decode, raising=False)
    cache = KVCache(tiny.model.config, "f32")
    result = generate(tiny, cache, torch.tensor([[5, 6, 7]]), new_tokens=3, sampling=GREEDY, emit=lambda text: None)
    assert result.text == "".join(f" w{token}" for token in result.tokens)


def test_a_turn_that_is_interrupted_leaves_the_conversation_as_it_was(loaded) -> None:
    """Ctrl-C in the middle of a call left some layers a piece of the prompt longer than others, for all turns after it."""
    profile = resolve("turbo4", loaded.geometry)
    talk, fresh = Conversation(loaded, profile), Conversation(loaded, profile)
    asked = {"new_tokens": 6, "sampling": GREEDY}

    def interrupts(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask("Where is the Count?", emit=interrupts, **asked)
    assert talk.messages == []
    theirs = fresh.ask("And the castle?", emit=lambda text: None, **asked)
    assert talk.ask("And the castle?", emit=lambda text: None, **asked).tokens == theirs.tokens


def test_messages_that_a_template_refuses(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's has no system messages; the reason came with a traceback."""
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    )
    monkeypatch.setattr(loaded.tokenizer, "chat_template", refuses)
    profile = resolve("turbo4", loaded.geometry)
    asked = {"new_tokens": 2, "sampling": GREEDY, "emit": lambda text: None}
    talk = Conversation(loaded, profile, "be kind")
    with pytest.raises(UserError, match="chat template refuses these messages: no system"):
        talk.ask("Who goes there?", **asked)
    assert [message["role"] for message in talk.messages] == ["system"]
    assert Conversation(loaded, profile).ask("Who goes there?", **asked).tokens


def test_a_template_that_does_not_compile_is_replaced(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = resolve("turbo4", loaded.geometry)
    asked = {"new_tokens": 4, "sampling": GREEDY, "emit": lambda text: None}
    plain = Conversation(loaded, profile).ask("Who goes there?", **asked)
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{% if %}")
    talk = Conversation(loaded, profile)
    assert not talk.has_template and "line 1" in (talk.template_problem or "")
    assert talk.ask("Who goes there?", **asked).tokens == plain.tokens
