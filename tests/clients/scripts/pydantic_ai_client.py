from __future__ import annotations

import asyncio

from features import HELLO, MODEL, V1, report
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from shapes import Parcel, Strict

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=V1, api_key="any"))
SETTINGS = {"temperature": 0, "max_tokens": 120}


def chat() -> None:
    assert Agent(model, model_settings=SETTINGS).run_sync(HELLO).output


def stream() -> None:
    async def go() -> str:
        async with Agent(model, model_settings=SETTINGS).run_stream(HELLO) as answer:
            return "".join([part async for part in answer.stream_text(delta=True)])

    assert asyncio.run(go())


def tool() -> None:
    """The output is a call of a tool that must be made."""
    assert Agent(model, output_type=Parcel, model_settings=SETTINGS).run_sync(HELLO).output.size.unit in ("cm", "m")


def structured() -> None:
    agent = Agent(model, output_type=NativeOutput(Strict), model_settings=SETTINGS)
    assert agent.run_sync(HELLO).output.unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
