from __future__ import annotations

from features import HELLO, MODEL, URL, report
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_ollama import ChatOllama
from shapes import Parcel

model = ChatOllama(model=MODEL, base_url=URL, temperature=0, num_predict=120)


def chat() -> None:
    assert model.invoke(HELLO).content


def stream() -> None:
    assert "".join(part.content for part in model.stream(HELLO)) == model.invoke(HELLO).content


def tool() -> None:
    """Ollama has no way to force a call: the tools are offered, and an earlier call and its result understood."""
    called = AIMessage("", tool_calls=[{"name": "Parcel", "args": {"colour": "red"}, "id": "1"}])
    answer = model.bind_tools([Parcel]).invoke([HumanMessage(HELLO), called, ToolMessage("sent", tool_call_id="1")])
    assert answer.content or answer.tool_calls


def structured() -> None:
    assert model.with_structured_output(Parcel, method="json_schema").invoke(HELLO).size.unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
