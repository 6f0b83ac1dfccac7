"""Request bodies of Anthropic's endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from stratakv.serve.api.schemas import MAX_STOPS, MAX_TOKENS, Body, SamplingBody, Stop, tag_of

Label = Annotated[dict[str, Any], Field(max_length=64)]


class Block(Body):
    """A part of a message. cache_control: pages of earlier prompts are found without it."""

    cache_control: Label | None = None


class TextBlock(Block):
    """Text. citations: of documents, which aren't taken here."""

    type: Literal["text"]
    text: str
    citations: list[Any] | None = None


class ThinkingBlock(Block):
    """What the model thought. signature: as it was given, not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Block):
    """A tool call that the model made before."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=128)
    input: dict[str, Any]
    caller: Label | None = None


class ToolResultBlock(Block):
    """What a call brought."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=256)
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ToolResultBlock, Tag("<tool_result>")], Discriminator(tag_of)
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")],
    Discriminator(tag_of),
]


class UserMessage(Body):
    """What the user says, and the results of the calls before."""

    role: Literal["user"]
    content: str | Annotated[list[UserBlock], Field(max_length=4096)]


class AssistantMessage(Body):
    """What the model said. As the last message it is the beginning of the answer."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantBlock], Field(max_length=4096)]


def _role(value: Any) -> str | None:
    return tag_of(value, "role")


Message = Annotated[
    Annotated[UserMessage, Tag("<user>")] | Annotated[AssistantMessage, Tag("<assistant>")], Discriminator(_role)
]


class Tool(Body):
    """A function that the model may call. Anthropic's own tools (web search, ...) are not here."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Label | None = None
    input_examples: list[Any] | None = None
    eager_input_streaming: bool | None = None


class ToolChoice(Body):
    """any: some tool must be called; tool: the one that is named."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model thinks before it answers, where its template can say so. No budget is kept."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    display: str | None = None


class JsonFormat(Body):
    """The schema that an answer has."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """effort: for templates that know it. format: of the answer."""

    effort: str | None = Field(None, max_length=32)
    format: JsonFormat | None = None


class CountBody(SamplingBody):
    """POST /v1/messages/count_tokens"""

    model: str = Field(min_length=1, max_length=512, description="any name is taken: this server has one model")
    messages: list[Message] = Field(min_length=1, max_length=4096)
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = Field(None, description="the older place of output_config.format")
    cache_control: Label | None = None


class MessagesBody(CountBody):
    """POST /v1/messages, with llama.cpp's sampling parameters beside Anthropic's."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    # Labels: they change no answer
    metadata: Label | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    inference_geo: str | None = None
    speed: Literal["standard"] | None = None
