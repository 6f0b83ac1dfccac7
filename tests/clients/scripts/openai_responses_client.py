from __future__ import annotations

import openai
from features import HELLO, MODEL, V1, report
from shapes import Parcel, Strict

client = openai.OpenAI(base_url=V1, api_key="any", max_retries=0)
ASK = {"model": MODEL, "input": HELLO, "temperature": 0, "max_output_tokens": 120}
PARCEL = {"type": "function", "name": "send", "parameters": Parcel.model_json_schema()}


def chat() -> None:
    assert client.responses.create(**ASK).output_text


def stream() -> None:
    text = client.responses.create(**ASK).output_text
    with client.responses.stream(**ASK) as events:
        events.until_done()
        assert events.get_final_response().output_text == text


def tool() -> None:
    answer = client.responses.create(tools=[PARCEL], tool_choice="required", **ASK)
    (call,) = answer.output
    Parcel.model_validate_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sent"}
    told = [{"role": "user", "content": HELLO}, *answer.output, result]
    assert client.responses.create(**{**ASK, "input": told}, tools=[PARCEL], tool_choice="none").output_text


def structured() -> None:
    assert client.responses.parse(text_format=Strict, **ASK).output_parsed.unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
