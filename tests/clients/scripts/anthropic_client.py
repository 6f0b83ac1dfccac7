from __future__ import annotations

import anthropic
from features import HELLO, MODEL, URL, report
from shapes import Parcel, Strict

client = anthropic.Anthropic(base_url=URL, api_key="any", max_retries=0)
HEAD = {"model": MODEL, "max_tokens": 120, "extra_body": {"temperature": 0}}
ASK = {"messages": [{"role": "user", "content": HELLO}], **HEAD}
PARCEL = {"name": "send", "input_schema": Parcel.model_json_schema()}


def chat() -> None:
    assert client.messages.create(system="Be brief.", **ASK).content[0].text


def stream() -> None:
    text = client.messages.create(**ASK).content[0].text
    with client.messages.stream(**ASK) as events:
        assert "".join(events.text_stream) == text
        assert events.get_final_message().content[0].text == text


def tool() -> None:
    answer = client.messages.create(tools=[PARCEL], tool_choice={"type": "any"}, **ASK)
    (call,) = answer.content
    Parcel.model_validate(call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sent"}
    told = [*ASK["messages"], {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    more = client.messages.create(messages=told, tools=[PARCEL], tool_choice={"type": "none"}, **HEAD)
    assert more.content[0].text


def structured() -> None:
    format_ = {"type": "json_schema", "schema": Strict.model_json_schema()}
    answer = client.messages.create(output_config={"format": format_}, **ASK)
    assert Strict.model_validate_json(answer.content[0].text).unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
