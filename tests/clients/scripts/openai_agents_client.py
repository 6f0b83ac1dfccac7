from __future__ import annotations

import asyncio

import agents
import openai
from features import HELLO, MODEL, V1, report
from shapes import Size, Strict

agents.set_tracing_disabled(True)
seen: list[Size] = []


@agents.function_tool
def send(size: Size) -> str:
    """Send a parcel of this size."""
    seen.append(size)
    return "sent"


def settings(**more: object) -> agents.ModelSettings:
    return agents.ModelSettings(temperature=0, max_tokens=120, **more)


def agent(**more: object) -> agents.Agent:
    """A client of its own each time: connections belong to the event loop that they were made in."""
    client = openai.AsyncOpenAI(base_url=V1, api_key="any", max_retries=0)
    model = agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
    return agents.Agent(name="Helper", instructions="Be brief.", model=model, **{"model_settings": settings(), **more})


def chat() -> None:
    assert agents.Runner.run_sync(agent(), HELLO).final_output


def stream() -> None:
    async def go() -> str:
        running = agents.Runner.run_streamed(agent(), HELLO)
        async for _ in running.stream_events():
            pass
        return str(running.final_output)

    assert asyncio.run(go()) == agents.Runner.run_sync(agent(), HELLO).final_output


def tool() -> None:
    """A call that must be made, its result sent back, and an answer after it."""
    forced = agent(
        tools=[send], model_settings=settings(tool_choice="required"), tool_use_behavior="stop_on_first_tool"
    )
    assert agents.Runner.run_sync(forced, HELLO).final_output == "sent" and seen[-1].unit in ("cm", "m")


def structured() -> None:
    assert agents.Runner.run_sync(agent(output_type=Strict), HELLO).final_output.unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
