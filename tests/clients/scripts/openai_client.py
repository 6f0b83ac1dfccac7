from __future__ import annotations

import openai
from features import HELLO, MODEL, V1, report
from shapes import Parcel, Strict

client = openai.OpenAI(base_url=V1, api_key="any", max_retries=0)
ASK = {"model": MODEL, "messages": [{"role": "user", "content": HELLO}], "temperature": 0, "max_tokens": 120}
PARCEL = {"type": "function", "function": {"name": "send", "parameters": Parcel.model_json_schema()}}


def chat() -> None:
    assert client.chat.completions.create(**ASK).choices[0].message.content


def stream() -> None:
    text = client.chat.completions.create(**ASK).choices[0].message.content
    with client.chat.completions.stream(**ASK) as events:
        events.until_done()
        assert events.get_final_completion().choices[0].message.content == text


def tool() -> None:
    answer = client.chat.completions.create(tools=[PARCEL], tool_choice="required", **ASK)
    (call,) = answer.choices[0].message.tool_calls
    Parcel.model_validate_json(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sent"}
    messages = [*ASK["messages"], answer.choices[0].message, result]
    more = client.chat.completions.create(**{**ASK, "messages": messages}, tools=[PARCEL], tool_choice="none")
    assert more.choices[0].message.content


def structured() -> None:
    assert client.chat.completions.parse(response_format=Strict, **ASK).choices[0].message.parsed.unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
