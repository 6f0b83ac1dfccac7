"""A prompt whose beginning is in pages already gets the answer that it gets without them."""

from __future__ import annotations

from typing import Any

import pytest
from serving import GREEDY, answers, check_same, tokens_of

from stratakv.engine.load import LoadedModel
from stratakv.pages.layout import PAGE_TOKENS as PAGE
from stratakv.profile import resolve
from stratakv.serve.request import GenerationRequest

NEEDLE = "The password of the tower is amber lantern. "
QUESTION = " The password of the tower is"


def needle_prompt(loaded: LoadedModel, ids: list[int], at: int, length: int) -> tuple[int, ...]:
    """A text of `length` tokens with a sentence in it that its end asks for."""
    tokenizer: Any = loaded.tokenizer
    needle = tokenizer(NEEDLE, add_special_tokens=False).input_ids
    question = tokenizer(QUESTION, add_special_tokens=False).input_ids
    hay = ids[: length - len(needle) - len(question)]
    return (*hay[:at], *needle, *hay[at:], *question)


@pytest.mark.parametrize("profile", ["f16", "turbo4", "q8_0/turbo3", "edges3"])
def test_hits_change_no_answer(engines: Any, loaded: LoadedModel, text_ids: list[int], profile: str) -> None:
    engine = engines(profile, slots=3)
    asked = []
    for at, length in ((20, 3 * PAGE + 16), (2 * PAGE - 6, 3 * PAGE + 16), (PAGE + 2, 3 * PAGE + 3)):
        prompt = needle_prompt(loaded, text_ids, at, length)
        asked.append(GenerationRequest(prompt, 10, GREEDY, cache_prompt=False))
    cold = [answers(engine, [request])[0] for request in asked]
    assert all(finish.cached_tokens == 0 for _, _, finish in cold) and engine.snapshot().pages_cached == 0
    for request in asked:
        answers(engine, [GenerationRequest(request.prompt, 1, GREEDY)])
    warm = answers(engine, [GenerationRequest(request.prompt, 10, GREEDY) for request in asked])
    for (_, ours, finish), (_, theirs, _) in zip(warm, cold, strict=True):
        assert finish.cached_tokens == 3 * PAGE
        check_same(tokens_of(ours), tokens_of(theirs))


def test_a_shared_beginning_is_used_up_to_where_prompts_part(engines: Any, text_ids: list[int]) -> None:
    engine = engines("turbo4", slots=2)
    first = tuple(text_ids[: 2 * PAGE + 44])
    other = (*text_ids[: PAGE + 40], *text_ids[500:600])
    answers(engine, [GenerationRequest(first, 1, GREEDY)])
    (_, ours, finish) = answers(engine, [GenerationRequest(other, 8, GREEDY)])[0]
    assert finish.cached_tokens == PAGE
    (_, theirs, cold) = answers(engine, [GenerationRequest(other, 8, GREEDY, cache_prompt=False)])[0]
    assert cold.cached_tokens == 0
    check_same(tokens_of(ours), tokens_of(theirs))


def test_old_prefixes_make_room(engines: Any, loaded: LoadedModel, text_ids: list[int]) -> None:
    five = 5 * PAGE * resolve("turbo4", loaded.geometry).bytes_per_token
    engine = engines("turbo4", slots=1, context=3 * PAGE, cache_bytes=five + 1000)
    for start in (0, 400, 800):
        answers(engine, [GenerationRequest(tuple(text_ids[start : start + 2 * PAGE + 4]), 2, GREEDY)])
    found = [
        answers(engine, [GenerationRequest(tuple(text_ids[start : start + 2 * PAGE + 4]), 1, GREEDY)])[0][
            2
        ].cached_tokens
        for start in (800, 0)
    ]
    assert found == [2 * PAGE, 0]
