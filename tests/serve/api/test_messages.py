"""Anthropic's messages with its official client, and what its API refuses."""

from __future__ import annotations

import json

import anthropic
import httpx
import pytest
from scripted import saying
from servers import ALIAS

HELLO = [{"role": "user", "content": "Who goes there?"}]
GREEDY = {"model": ALIAS, "max_tokens": 10, "extra_body": {"temperature": 0}}
SCHEMA = {
    "type": "object",
    "properties": {"where": {"enum": ["left", "right"]}},
    "required": ["where"],
    "additionalProperties": False,
}
LOOK = {"name": "look", "description": "Look there.", "input_schema": SCHEMA}
CALLED = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"where": "left"}}],
}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a wall"}


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as made:
        yield made


def test_message(client, server):
    answer = client.messages.create(messages=HELLO, system="Be brief.", **GREEDY)
    (block,) = answer.content
    assert answer.role == "assistant" and answer.model == ALIAS and block.type == "text" and block.text
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 10
    chat = {
        "model": ALIAS,
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO],
        "temperature": 0,
        "max_tokens": 10,
    }
    same = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=60).json()
    assert same["choices"][0]["message"]["content"] == block.text
    assert same["usage"]["prompt_tokens"] == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


def test_stream(client):
    whole = client.messages.create(messages=HELLO, **GREEDY)
    with client.messages.stream(messages=HELLO, **GREEDY) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text and final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 10
    assert [e for e in events if e != "text"][:2] == ["message_start", "content_block_start"]
    assert events[-1] == "message_stop" and events.count("content_block_delta") > 3


def test_stop_sequences(client):
    free = client.messages.create(messages=HELLO, **GREEDY).content[0].text
    word = free.split()[2]
    answer = client.messages.create(messages=HELLO, stop_sequences=[word, "never"], **GREEDY)
    assert answer.content[0].text == free[: free.index(word)]
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == word
    with saying("all of it"):
        assert client.messages.create(messages=HELLO, stop_sequences=["never"], **GREEDY).stop_reason == "end_turn"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_tools(client, choice):
    ask = {"messages": HELLO, "tools": [LOOK], "tool_choice": choice, **GREEDY, "max_tokens": 60}
    answer = client.messages.create(**ask)
    (call,) = answer.content
    assert answer.stop_reason == "tool_use" and call.name == "look" and call.input["where"] in ("left", "right")
    with client.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].input == call.input and streamed.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "a wall"}]}
    more = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=more, tools=[LOOK], tool_choice={"type": "none"}, **GREEDY).content[0].text


def test_text_and_several_calls(client):
    call = '<tool_call>{"name": "look", "arguments": {"where": "%s"}}</tool_call>'
    with saying("I look. " + call % "left" + call % "right"):
        for choice, inputs in (
            ({"type": "auto"}, ["left", "right"]),
            ({"type": "auto", "disable_parallel_tool_use": True}, ["left"]),
        ):
            ask = {"messages": HELLO, "tools": [LOOK], "tool_choice": choice, **GREEDY, "max_tokens": 90}
            with client.messages.stream(**ask) as stream:
                streamed = stream.get_final_message()
            for answer in (client.messages.create(**ask), streamed):
                text, *calls = answer.content
                assert text.text.strip() == "I look." and [each.input["where"] for each in calls] == inputs
                assert len({each.id for each in calls}) == len(calls)


def test_structured_output(client):
    format_ = {"type": "json_schema", "schema": SCHEMA}
    answer = client.messages.create(messages=HELLO, **{**GREEDY, "max_tokens": 40}, output_config={"format": format_})
    assert json.loads(answer.content[0].text)["where"] in ("left", "right")


def test_count_tokens(client):
    for more in ({}, {"system": "Be brief."}, {"tools": [LOOK]}):
        counted = client.messages.count_tokens(model=ALIAS, messages=HELLO, **more).input_tokens
        usage = client.messages.create(messages=HELLO, **GREEDY, **more).usage
        assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_the_assistants_last_message_is_continued(client):
    whole = client.messages.create(messages=HELLO, **GREEDY).content[0].text
    begun = whole[: whole.index(" ", 4)]
    begun_message = {"role": "assistant", "content": begun}
    rest = client.messages.create(messages=[*HELLO, begun_message], **GREEDY).content[0].text
    assert (begun + rest).startswith(whole[: len(begun) + 5])


def test_labels_of_real_clients_are_taken(client):
    """As Claude Code sends them."""
    cache = {"type": "ephemeral"}
    said = [{"type": "text", "text": "Who goes there?", "cache_control": cache}]
    answer = client.messages.create(
        messages=[{"role": "user", "content": said}],
        system=[{"type": "text", "text": "Be brief.", "cache_control": cache}],
        tools=[{**LOOK, "cache_control": cache}],
        metadata={"user_id": "someone"},
        thinking={"type": "disabled"},
        service_tier="auto",
        **GREEDY,
    )
    assert answer.usage.output_tokens


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"nonsense": 1}, "'nonsense' is not supported"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}, *HELLO]}, "the first message is the user's"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "no tool_use block 'toolu_1'"),
        ({"messages": [*HELLO, CALLED, *HELLO]}, "tool_result block for 'toolu_1' is missing"),
        ({"messages": [*HELLO, CALLED, {"role": "user", "content": [RESULT, RESULT]}]}, "no tool_use block 'toolu_1'"),
        ({"messages": [*HELLO, CALLED]}, "tool calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tool_choice": {"type": "tool"}}, "names the tool"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{**LOOK, "input_schema": {"type": "nonsense"}}], "tool_choice": {"type": "any"}}, "json_schema"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "tokens"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_input(client, body, says):
    with pytest.raises(anthropic.BadRequestError) as error:
        client.messages.create(**{"messages": HELLO, **GREEDY, "extra_body": body})
    assert error.value.body["type"] == "error" and error.value.body["error"]["type"] == "invalid_request_error"
    assert says in error.value.body["error"]["message"]


def test_other_errors_have_the_familys_form(client, server):
    answer = httpx.post(f"{server.url}/v1/messages", content="{", timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    answer = httpx.post(f"{server.url}/v1/messages/nothing", json={}, timeout=60)
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"


def test_a_stream_that_fails_says_so(client):
    """A schema that nothing finite fits: the grammar gives up while the answer is written."""
    link = {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"]}
    format_ = {"type": "json_schema", "schema": {"$defs": {"n": link}, "$ref": "#/$defs/n"}}
    with (
        pytest.raises(anthropic.APIStatusError, match="grammar"),
        client.messages.stream(
            messages=HELLO, **{**GREEDY, "max_tokens": 20}, output_config={"format": format_}
        ) as stream,
    ):
        stream.get_final_message()
