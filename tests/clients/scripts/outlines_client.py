from __future__ import annotations

import openai
import outlines
from features import HELLO, MODEL, V1, report
from outlines.types import CFG, Choice, regex
from shapes import Parcel, Strict

client = openai.OpenAI(base_url=V1, api_key="any", max_retries=0)
SHORT = {"temperature": 0, "max_tokens": 120}


def chat() -> None:
    assert outlines.from_openai(client, MODEL)(HELLO, **SHORT)


def stream() -> None:
    model = outlines.from_openai(client, MODEL)
    assert "".join(model.stream(HELLO, **SHORT)) == model(HELLO, **SHORT)


def structured() -> None:
    Strict.model_validate_json(outlines.from_openai(client, MODEL)(HELLO, Strict, **SHORT))
    vllm = outlines.from_vllm(client, MODEL)
    Parcel.model_validate_json(vllm(HELLO, Parcel, **SHORT))
    assert vllm(HELLO, Choice(["red", "blue"]), **SHORT) in ("red", "blue")
    assert vllm(HELLO, regex("[0-9]{2}-[a-f]"), **SHORT)[2] == "-"
    assert vllm(HELLO, CFG('start: "up" | "down"'), **SHORT) in ("up", "down")


report({"chat": chat, "stream": stream, "structured": structured})
