"""Request body of OpenAI's /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from stratakv.serve.api.schemas import Body, NewTokens, SamplingBody, tag_of

Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Field(max_length=256)]


class Part(Body):
    """A part of a message. Only text is taken."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    # What answers hold and clients send back
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """A message, as it is given or as it came as output."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Field(max_length=4096)]
    id: Id | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCall(Body):
    """A call that the model made before."""

    type: Literal["function_call"]
    call_id: Id = Field(min_length=1)
    name: str = Field(min_length=1, max_length=128)
    arguments: str
    id: Id | None = None
    status: Status | None = None
    caller: dict[str, Any] | None = None


class FunctionOutput(Body):
    """What a call brought."""

    type: Literal["function_call_output"]
    call_id: Id = Field(min_length=1)
    output: str | Annotated[list[Part], Field(max_length=4096)]
    id: Id | None = None
    status: Status | None = None
    name: str | None = None
    caller: dict[str, Any] | None = None


class ReasoningPart(Body):
    """A piece of a thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class Reasoning(Body):
    """What the model thought before the next item."""

    type: Literal["reasoning"]
    id: Id | None = None
    summary: list[ReasoningPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


def _kind(value: Any) -> str | None:
    return tag_of(value) or "<message>"


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionOutput, Tag("<function_call_output>")]
    | Annotated[Reasoning, Tag("<reasoning>")],
    Discriminator(_kind),
]


class FunctionTool(Body):
    """A function that the model may call. OpenAI's own tools (web search, ...) are not here."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    output_schema: dict[str, Any] | None = None


class NamedTool(Body):
    """This tool must be called."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """Only some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class TextFormat(Body):
    """text, any JSON object, or an answer by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """format: of the answer. verbosity: a wish that no template knows."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Body):
    """effort: for templates that know it, "none": not at all. summary: thoughts come whole, nothing is summed up."""

    effort: str | None = Field(None, max_length=32)
    summary: str | None = None
    generate_summary: str | None = None


class StreamOptions(Body):
    """include_obfuscation: nothing is padded here."""

    include_obfuscation: bool | None = None


class ResponsesBody(SamplingBody):
    """POST /v1/responses, with llama.cpp's sampling parameters beside OpenAI's. Nothing is stored, whatever `store` says."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    model: str | None = Field(None, max_length=512, description="any name is taken: this server has one model")
    instructions: str | None = None
    max_output_tokens: NewTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(None, ge=0, description="of OpenAI's own tools, which are not here")
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[list[str], Field(max_length=32)] | None = None
    truncation: Literal["disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Conversations that the server would have to keep
    previous_response_id: str | None = Field(None, max_length=256)
    # Labels: they change no answer
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    background: Literal[False] | None = None
