"""A model whose template opens a thought: each family's own form of it, whole and streamed, and what turns it off."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import httpx
import ollama
import openai
import pytest
from scripted import saying, thinking_template
from servers import ALIAS, Running, running

HELLO = [{"role": "user", "content": "Who goes there?"}]
THOUGHT, SAID = "It is dark. </ is no mark.", "A friend."
ANSWER = f"{THOUGHT}\n</think>\n\n{SAID}"
COLOUR = {
    "type": "object",
    "properties": {"c": {"enum": ["red", "blue"]}},
    "required": ["c"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def thinker(server: Running) -> Iterator[Running]:
    """Beside the folder's `server`, which starts before the tokenizer that both use has the template."""
    with thinking_template(), running() as server:
        yield server


def chat(server: Running, **body) -> dict:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": HELLO, **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_chat(thinker):
    client = openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="x", max_retries=0)
    with saying(ANSWER):
        answer = chat(thinker)
        message = answer["choices"][0]["message"]
        assert message["reasoning_content"] == THOUGHT and message["content"] == SAID
        assert (
            3 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]
        )
        deltas = [c.choices[0].delta for c in client.chat.completions.create(model=ALIAS, messages=HELLO, stream=True)]
    thoughts = [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)]
    assert "".join(thoughts) == THOUGHT and len(thoughts) > 2
    assert "".join(delta.content or "" for delta in deltas) == SAID


def test_formats_and_switches(thinker):
    with saying(ANSWER):
        message = chat(thinker, reasoning_format="none")["choices"][0]["message"]
        assert message["content"] == ANSWER and "reasoning_content" not in message
        message = chat(thinker, reasoning_format="deepseek-legacy")["choices"][0]["message"]
        assert message["content"] == ANSWER and message["reasoning_content"] == THOUGHT
    with saying(SAID):
        for off in (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "none"},
            {"thinking": {"type": "disabled"}},
        ):
            message = chat(thinker, **off)["choices"][0]["message"]
            assert message["content"] == SAID and "reasoning_content" not in message
        assert chat(thinker)["choices"][0]["message"]["reasoning_content"] == SAID, "a thought that was cut"
    prompt = httpx.post(f"{thinker.url}/apply-template", json={"messages": HELLO, "reasoning_effort": "high"}).json()[
        "prompt"
    ]
    assert prompt.endswith("effort high<think>\n")


def test_a_schema_binds_what_comes_after_the_thought(thinker):
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": COLOUR}}
    with saying(f'{THOUGHT}</think>{{"c": "red"}}'):
        message = chat(thinker, response_format=format_)["choices"][0]["message"]
    assert json.loads(message["content"]) == {"c": "red"} and message["reasoning_content"] == THOUGHT


def test_thoughts_go_back_to_the_template(thinker):
    told = [*HELLO, {"role": "assistant", "content": SAID, "reasoning_content": "hm"}, *HELLO]
    prompt = httpx.post(f"{thinker.url}/apply-template", json={"messages": told}).json()["prompt"]
    assert "<think>\nhm\n</think>" in prompt
    blocks = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": SAID}]
    body = {"model": "x", "messages": [*HELLO, {"role": "assistant", "content": blocks}, *HELLO]}
    counted = httpx.post(f"{thinker.url}/v1/messages/count_tokens", json=body).json()["input_tokens"]
    tokens = httpx.post(f"{thinker.url}/tokenize", json={"content": prompt}).json()["tokens"]
    assert counted == len(tokens)


def test_an_answer_that_is_continued_is_no_thought(thinker):
    with saying(" friend."):
        begun = [*HELLO, {"role": "assistant", "content": "It is dark.</think>A"}]
        message = chat(thinker, messages=begun)["choices"][0]["message"]
    assert message["content"] == " friend." and "reasoning_content" not in message


def test_responses(thinker):
    client = openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="x", max_retries=0)
    with saying(ANSWER):
        answer = client.responses.create(model=ALIAS, input="Who goes there?")
        events = list(client.responses.create(model=ALIAS, input="Who goes there?", stream=True))
    for output in (answer.output, events[-1].response.output):
        assert [item.type for item in output] == ["reasoning", "message"]
        assert output[0].content[0].text == THOUGHT and output[1].content[0].text == SAID
    assert answer.output_text == SAID and answer.usage.output_tokens_details.reasoning_tokens > 3
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == THOUGHT


def test_messages(thinker):
    client = anthropic.Anthropic(base_url=thinker.url, api_key="x", max_retries=0)
    ask = {"model": ALIAS, "messages": HELLO, "max_tokens": 100}
    with saying(ANSWER):
        answer = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
    for content in (answer.content, streamed.content):
        assert [block.type for block in content] == ["thinking", "text"]
        assert content[0].thinking == THOUGHT and content[1].text == SAID
    with saying(SAID):
        answer = client.messages.create(**ask, thinking={"type": "disabled"})
    assert [block.type for block in answer.content] == ["text"]


def test_ollama(thinker, server):
    client = ollama.Client(thinker.url)
    assert "thinking" in client.show(ALIAS).capabilities
    with saying(ANSWER):
        message = client.chat(ALIAS, HELLO, think=True).message
        assert message.thinking == THOUGHT and message.content == SAID
        parts = [part.message for part in client.chat(ALIAS, HELLO, stream=True)]
        assert "".join(part.thinking or "" for part in parts) == THOUGHT
        assert "".join(part.content or "" for part in parts) == SAID
        answer = client.generate(ALIAS, "Who goes there?")
        assert answer.thinking == THOUGHT and answer.response == SAID
    with saying(SAID):
        message = client.chat(ALIAS, HELLO, think=False).message
        assert message.content == SAID and not message.thinking
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        ollama.Client(server.url).chat(ALIAS, HELLO, think=True)


def test_models_without_marks_are_not_parted(server):
    with saying("<think>no</think> yes"):
        message = chat(server)["choices"][0]["message"]
    assert message["content"] == "<think>no</think> yes"
