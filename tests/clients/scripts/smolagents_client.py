from __future__ import annotations

from features import HELLO, MODEL, V1, report
from shapes import Strict
from smolagents import ChatMessage, OpenAIModel, Tool

model = OpenAIModel(MODEL, api_base=V1, api_key="any", temperature=0, max_tokens=120)
MESSAGES = [ChatMessage(role="user", content=[{"type": "text", "text": HELLO}])]


class Send(Tool):
    name = "send"
    description = "Sends a parcel."
    inputs = {"colour": {"type": "string", "description": "its colour", "enum": ["red", "blue"]}}  # noqa: RUF012
    output_type = "string"

    def forward(self, colour: str) -> str:
        return colour


def chat() -> None:
    assert model.generate(MESSAGES).content


def stream() -> None:
    text = "".join(part.content or "" for part in model.generate_stream(MESSAGES))
    assert text == model.generate(MESSAGES).content


def tool() -> None:
    answer = model.generate(MESSAGES, tools_to_call_from=[Send()])
    call = model.parse_tool_calls(answer).tool_calls[0]
    assert call.function.name == "send" and call.function.arguments["colour"] in ("red", "blue")


def structured() -> None:
    format_ = {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": Strict.model_json_schema(), "strict": True},
    }
    Strict.model_validate_json(model.generate(MESSAGES, response_format=format_).content)


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
