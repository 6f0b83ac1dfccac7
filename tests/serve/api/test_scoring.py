"""Log-probabilities of a prompt's own tokens: `echo` with `logprobs`, against the model's logits computed in one piece."""

from __future__ import annotations

import openai
import pytest
import torch
from servers import ALIAS, running

from stratakv import load_model
from stratakv.serve.request import Limits

TEXT = "The night was dark, and the castle stood alone. " * 12


@pytest.fixture(scope="module")
def exact():
    """A server whose cache and products are exact, so that logits are the model's own."""
    model = load_model("embedded", packed=False)
    with running(profile="f32", limits=Limits(slots=2, context=256, cache_bytes=2**25), model=model) as made:
        yield made


@pytest.fixture(scope="module")
def client(exact):
    with openai.OpenAI(base_url=f"{exact.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def expected(exact, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(exact.engine.loaded.model(torch.tensor([ids])).logits[0].float(), dim=-1)


@pytest.mark.parametrize("new", [0, 1, 3])
def test_a_prompts_tokens_have_the_models_probabilities(client, exact, new):
    ids = exact.engine.loaded.tokenizer(TEXT).input_ids[:150]
    answer = client.completions.create(
        model=ALIAS, prompt=ids, echo=True, logprobs=3, max_tokens=new, temperature=0
    ).choices[0]
    found, logs = answer.logprobs, expected(exact, ids)
    assert len(found.token_logprobs) == len(found.tokens) == len(found.text_offset) == len(ids) + new
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    own = logs[torch.arange(len(ids) - 1), ids[1:]]
    torch.testing.assert_close(torch.tensor(found.token_logprobs[1 : len(ids)]), own, atol=2e-3, rtol=0)
    best = [max(top.values()) for top in found.top_logprobs[1 : len(ids)]]
    torch.testing.assert_close(torch.tensor(best), logs[:-1].max(-1).values, atol=2e-3, rtol=0)
    assert answer.text == "".join(found.tokens)
    assert all(answer.text[at:].startswith(token) for at, token in zip(found.text_offset, found.tokens, strict=True))
    assert answer.finish_reason == "length"


def test_an_end_of_text_counts_as_a_token(client, exact):
    """lm-evaluation-harness asks for one new token and leaves out the last entry, whatever it is."""
    end = min(exact.engine.end_tokens)
    answer = client.completions.create(
        model=ALIAS, prompt="The night", max_tokens=1, echo=True, logprobs=1, logit_bias={str(end): 1000}, temperature=0
    ).choices[0]
    assert answer.finish_reason == "stop" and answer.text == "The night" == "".join(answer.logprobs.tokens)
    assert len(answer.logprobs.tokens) == len(exact.engine.loaded.tokenizer("The night").input_ids) + 1


def test_streams_and_several_prompts(client, exact):
    ids = exact.engine.loaded.tokenizer(TEXT).input_ids
    options = {"model": ALIAS, "echo": True, "logprobs": 1, "max_tokens": 2, "temperature": 0}
    whole = client.completions.create(prompt=[ids[:40], ids[:90]], **options)
    assert [len(choice.logprobs.tokens) for choice in whole.choices] == [42, 92]
    chunks = list(client.completions.create(prompt=ids[:40], stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    logs = [each for chunk in chunks if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.token_logprobs]
    assert logs[0] is None and logs[1:] == pytest.approx(whole.choices[0].logprobs.token_logprobs[1:], abs=2e-3)


def test_prompts_as_long_as_the_context(client, exact):
    ids = (exact.engine.loaded.tokenizer(TEXT).input_ids * 3)[:256]
    options = {"model": ALIAS, "echo": True, "logprobs": 1, "temperature": 0}
    full = client.completions.create(prompt=ids, max_tokens=0, **options)
    assert len(full.choices[0].logprobs.tokens) == 256 and full.usage.completion_tokens == 0
    assert len(client.completions.create(prompt=ids[:255], max_tokens=1, **options).choices[0].logprobs.tokens) == 256
    for prompt, new in ((ids, 1), ([*ids, 5], 0), (ids, -1)):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(prompt=prompt, max_tokens=new, **options)
        assert error.value.code == "context_length_exceeded"
    exact.wait_idle()
    assert exact.engine.snapshot().pages_used == 0


def test_a_prompt_that_was_seen_before_is_scored_too(client, exact):
    ids = (exact.engine.loaded.tokenizer(TEXT).input_ids * 3)[:200]
    client.completions.create(model=ALIAS, prompt=ids, max_tokens=1, temperature=0)
    again = client.completions.create(model=ALIAS, prompt=ids, max_tokens=0, echo=True, logprobs=1, temperature=0)
    assert sum(each is None for each in again.choices[0].logprobs.token_logprobs) == 1
    assert again.usage.prompt_tokens_details.cached_tokens == 0


def test_nothing_new_is_nothing(client):
    answer = client.completions.create(model=ALIAS, prompt="The night", max_tokens=0)
    assert (answer.choices[0].text, answer.usage.completion_tokens) == ("", 0)
    assert (
        client.completions.create(model=ALIAS, prompt="The night", max_tokens=0, echo=True).choices[0].text
        == "The night"
    )
