"""OpenAI's Responses API with the official client, and what it refuses."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from scripted import saying
from servers import ALIAS

GREEDY = {"model": ALIAS, "temperature": 0.0}
HELLO = "Who goes there?"
SCHEMA = {
    "type": "object",
    "properties": {"where": {"enum": ["left", "right"]}},
    "required": ["where"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "name": "look", "description": "Look there.", "parameters": SCHEMA, "strict": True}
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"where": "left"}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "a wall"}
ORDER = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.done", "response.content_part.done", "response.output_item.done",
]  # fmt: skip


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_response(client, server):
    answer = client.responses.create(input=HELLO, instructions="Be brief.", max_output_tokens=10, **GREEDY)
    assert answer.object == "response" and answer.status == "incomplete" and answer.model == ALIAS
    assert answer.incomplete_details.reason == "max_output_tokens" and answer.model_extra["store"] is False
    assert answer.usage.output_tokens == 10 and answer.usage.total_tokens == answer.usage.input_tokens + 10
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HELLO}]
    chat = client.chat.completions.create(messages=messages, max_tokens=10, **GREEDY)
    assert answer.output_text == chat.choices[0].message.content
    with saying("all of it"):
        assert client.responses.create(input=HELLO, **GREEDY).status == "completed"


def test_stream(client):
    whole = client.responses.create(input=HELLO, max_output_tokens=10, **GREEDY)
    events = list(client.responses.create(input=HELLO, max_output_tokens=10, stream=True, **GREEDY))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [*ORDER, "response.incomplete"]
    assert "".join(event.delta for event in events if event.type == ORDER[4]) == whole.output_text
    final = events[-1].response
    assert final.output_text == whole.output_text and final.usage.output_tokens == 10
    assert len({event.item_id for event in events if hasattr(event, "item_id")}) == 1
    with saying("all of it"), client.responses.stream(input=HELLO, **GREEDY) as stream:
        assert stream.get_final_response().output_text == "all of it"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "look"}])
def test_tools(client, choice):
    ask = {"input": HELLO, "tools": [LOOK], "tool_choice": choice, "max_output_tokens": 60, **GREEDY}
    answer = client.responses.create(**ask)
    (call,) = answer.output
    assert call.type == "function_call" and json.loads(call.arguments)["where"] in ("left", "right")
    events = list(client.responses.create(**ask, stream=True))
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == call.arguments and events[-1].response.output[0].name == "look"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "a wall"}
    told = [{"role": "user", "content": HELLO}, *(item.model_dump(exclude_none=True) for item in answer.output), result]
    more = client.responses.create(input=told, tools=[LOOK], tool_choice="none", max_output_tokens=4, **GREEDY)
    assert more.output_text and more.output[0].type == "message"


def test_text_and_several_calls(client):
    call = '<tool_call>{"name": "look", "arguments": {"where": "%s"}}</tool_call>'
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}
    other = {**LOOK, "name": "jump"}
    with saying("I look. " + call % "left" + call % "right"):
        for parallel, count in ((True, 2), (False, 1)):
            ask = {
                "input": HELLO,
                "tools": [LOOK, other],
                "tool_choice": allowed,
                "parallel_tool_calls": parallel,
                **GREEDY,
            }
            for output in (
                client.responses.create(**ask).output,
                list(client.responses.create(**ask, stream=True))[-1].response.output,
            ):
                assert [item.type for item in output] == ["message"] + ["function_call"] * count
                assert output[0].content[0].text.strip() == "I look."


def test_structured_output(client):
    format_ = {"type": "json_schema", "name": "there", "schema": SCHEMA, "strict": True}
    answer = client.responses.create(
        input=HELLO, text={"format": format_, "verbosity": "low"}, max_output_tokens=40, **GREEDY
    )
    assert json.loads(answer.output_text)["where"] in ("left", "right")
    answer = client.responses.create(
        input=HELLO, text={"format": {"type": "json_object"}}, max_output_tokens=20, **GREEDY
    )
    assert answer.output_text.startswith("{")


def test_logprobs(client):
    ask = {
        "input": HELLO,
        "max_output_tokens": 4,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        **GREEDY,
    }
    logprobs = client.responses.create(**ask).output[0].content[0].logprobs
    assert len(logprobs) == 4 and all(len(each.top_logprobs) == 2 for each in logprobs)
    events = list(client.responses.create(**ask, stream=True))
    streamed = [each.token for event in events if event.type == ORDER[4] for each in event.logprobs]
    assert streamed == [each.token for each in logprobs]


def test_items_are_the_chats_messages(client):
    """A conversation as items, with everything that answers hold and clients send back, has the prompt of the same chat."""
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": HELLO}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {**CALL, "id": "fc_1", "status": "completed"},
        OUTPUT,
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"where": "left"}'}}
    chat = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": HELLO},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a wall"}, {"role": "user", "content": "And?"},
    ]  # fmt: skip
    ours = client.responses.create(input=items, max_output_tokens=6, **GREEDY)
    same = client.chat.completions.create(messages=chat, max_tokens=6, **GREEDY)
    assert ours.output_text == same.choices[0].message.content and ours.usage.input_tokens == same.usage.prompt_tokens


def test_labels_of_real_clients_are_taken(client):
    answer = client.responses.create(
        input=HELLO, max_output_tokens=2, store=True, metadata={"a": "b"}, user="someone", truncation="disabled",
        parallel_tool_calls=True, reasoning={"effort": "none", "summary": "auto"}, include=["reasoning.encrypted_content"],
        prompt_cache_key="k", service_tier="auto", **GREEDY,
    )  # fmt: skip
    assert answer.metadata == {"a": "b"} and answer.previous_response_id is None


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "'resp_1' is not kept"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"background": True}, "background", ""),
        ({"prompt": {"id": "x"}}, "prompt", "not supported"),
        ({"truncation": "auto"}, "truncation", ""),
        ({"nonsense": 1}, "nonsense", "not supported"),
        ({"input": []}, "input", ""),
        ({"input": [OUTPUT]}, "input", "no function_call 'call_1'"),
        ({"input": [CALL, OUTPUT, OUTPUT]}, "input", "no function_call 'call_1'"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "item_reference"),
        ({"input": [{"role": "king", "content": "x"}]}, "input", "role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "input.0.content"),
        ({"input": [{"role": "user", "content": HELLO}, CALL]}, "input", "tool calls"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools.0"),
        ({"tool_choice": "required"}, "tool_choice", ""),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text", "schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}}}, "text", ""),
        ({"max_output_tokens": 0}, "max_output_tokens", ""),
        ({"input": "word " * 5000}, None, "tokens"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_input(client, body, param, says):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(input=HELLO, extra_body=body, **GREEDY)
    assert error.value.body["type"] == "invalid_request_error" and says in error.value.body["message"]
    assert param is None or error.value.body["param"] == param


def test_responses_are_not_kept(client):
    with pytest.raises(openai.NotFoundError, match="not kept"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="not kept"):
        client.responses.delete("resp_1")


def test_a_stream_that_fails_says_so(client):
    link = {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"]}
    format_ = {"type": "json_schema", "name": "x", "schema": {"$defs": {"n": link}, "$ref": "#/$defs/n"}}
    events = list(
        client.responses.create(input=HELLO, text={"format": format_}, max_output_tokens=20, stream=True, **GREEDY)
    )
    assert events[-1].type == "response.failed" and "grammar" in events[-1].response.error.message


def test_clients_that_leave_free_their_pages(server):
    body = {"input": HELLO, "stream": True, "max_output_tokens": 900, "temperature": 0}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    server.wait_idle()
