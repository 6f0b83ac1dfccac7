"""Prompts in pieces: models that forget their state between pieces are found out, and get their prompts whole everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, loaded_tiny

from stratakv import KVCache, resolve
from stratakv.engine.conversation import Conversation
from stratakv.engine.generate import Sampling, generate
from stratakv.engine.load import LoadedModel
from stratakv.measure.forward import context_logits

GREEDY = Sampling(temperature=0)
IDS = torch.randint(3, 97, (1, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_only_jamba_forgets(model_type: str) -> None:
    assert loaded_tiny(model_type).reads_in_pieces == (model_type != "jamba")


def test_a_model_without_states_needs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = loaded_tiny("llama")
    monkeypatch.setattr(tiny.model, "forward", None)
    assert tiny.reads_in_pieces


def generated(tiny: LoadedModel, ids: torch.Tensor, chunk: int) -> list[int]:
    cache = KVCache(tiny.model.config, "f32")
    return generate(tiny, cache, ids, new_tokens=8, sampling=GREEDY, emit=lambda text: None, prefill_chunk=chunk).tokens


@pytest.mark.parametrize("model_type", ["jamba", "lfm2"])
def test_generation_is_the_same_for_any_pieces(model_type: str) -> None:
    tiny = loaded_tiny(model_type)
    for start in range(8):  # of which some draw another token
        ids = IDS[:, start:]
        whole = tiny.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()  # type: ignore[operator]
        assert generated(tiny, ids, 512) == generated(tiny, ids, 5) == whole


def test_measuring_is_the_same_for_any_pieces() -> None:
    tiny = loaded_tiny("jamba")
    profile = resolve("f32", tiny.geometry)
    whole, pieces = (context_logits(tiny, profile, IDS[0], batch).logits for batch in (512, 6))
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)


class Words:
    """A tokenizer of numbers: a message is its numbers."""

    eos_token_id, bos_token_id, chat_template = None, None, "numbers"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return " ".join(message["content"] for message in messages)

    def __call__(self, text: str, **_: Any) -> Any:
        return type("Ids", (), {"input_ids": [int(word) for word in text.split()]})

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(f"{token} " for token in tokens)


@pytest.mark.parametrize("model_type", ["jamba", "llama"])
def test_a_second_turn_is_the_whole_conversation_s(model_type: str) -> None:
    tiny = loaded_tiny(model_type)
    tiny.tokenizer = Words()
    talk = Conversation(tiny, resolve("f32", tiny.geometry))
    for text in ("5 17 33 80 9", "61 4 22"):
        result = talk.ask(text, new_tokens=4, sampling=GREEDY, emit=lambda text: None)
    held = talk.prompt_ids()[:-4]
    whole = tiny.model.generate(torch.tensor([held]), max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    assert result.tokens == whole[0, len(held) :].tolist()
    assert result.prompt_tokens == (len(held) if model_type == "jamba" else 4)
