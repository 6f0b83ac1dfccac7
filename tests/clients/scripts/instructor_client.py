from __future__ import annotations

import instructor
import openai
from features import HELLO, MODEL, V1, report
from shapes import Parcel, Strict

plain = openai.OpenAI(base_url=V1, api_key="any", max_retries=0)
ASK = {"model": MODEL, "messages": [{"role": "user", "content": HELLO}], "temperature": 0, "max_tokens": 120,
       "max_retries": 0}  # fmt: skip


def tool() -> None:
    made = instructor.from_openai(plain, mode=instructor.Mode.TOOLS).create(response_model=Parcel, **ASK)
    assert made.size.unit in ("cm", "m")


def structured() -> None:
    made = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA).create(response_model=Strict, **ASK)
    assert made.unit in ("cm", "m")


def stream() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
    *_, last = client.create_partial(response_model=Strict, **ASK)
    assert last.unit in ("cm", "m")


report({"stream": stream, "tool": tool, "structured": structured})
