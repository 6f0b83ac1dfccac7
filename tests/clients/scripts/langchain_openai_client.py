from __future__ import annotations

from features import HELLO, MODEL, V1, report
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from shapes import Parcel, Strict

model = ChatOpenAI(model=MODEL, base_url=V1, api_key="any", temperature=0, max_tokens=120, max_retries=0)


def chat() -> None:
    assert model.invoke(HELLO).content


def stream() -> None:
    assert "".join(part.content for part in model.stream(HELLO)) == model.invoke(HELLO).content


def tool() -> None:
    bound = model.bind_tools([Parcel], tool_choice="any")
    first = bound.invoke(HELLO)
    (call,) = first.tool_calls
    Parcel.model_validate(call["args"])
    more = model.invoke([HumanMessage(HELLO), first, ToolMessage("sent", tool_call_id=call["id"])])
    assert more.content


def structured() -> None:
    assert model.with_structured_output(Strict, method="json_schema").invoke(HELLO).unit in ("cm", "m")
    assert model.with_structured_output(Parcel, method="function_calling").invoke(HELLO).size.unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
