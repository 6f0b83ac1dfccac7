from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
import litellm
from features import HELLO, MODEL, URL, V1, report
from shapes import Parcel, Strict

ASK = {"model": f"openai/{MODEL}", "api_base": V1, "api_key": "any", "messages": [{"role": "user", "content": HELLO}],
       "temperature": 0, "max_tokens": 120}  # fmt: skip
PARCEL = {"type": "function", "function": {"name": "send", "parameters": Parcel.model_json_schema()}}


def chat() -> None:
    text = litellm.completion(**ASK).choices[0].message.content
    ours = {**ASK, "model": f"ollama_chat/{MODEL}", "api_base": URL}
    assert text and litellm.completion(**ours).choices[0].message.content


def stream() -> None:
    text = "".join(part.choices[0].delta.content or "" for part in litellm.completion(stream=True, **ASK))
    assert text == litellm.completion(**ASK).choices[0].message.content


def tool() -> None:
    answer = litellm.completion(tools=[PARCEL], tool_choice="required", **ASK)
    (call,) = answer.choices[0].message.tool_calls
    Parcel.model_validate_json(call.function.arguments)


def structured() -> None:
    Strict.model_validate_json(litellm.completion(response_format=Strict, **ASK).choices[0].message.content)


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
