"""Request bodies of OpenAI's endpoints, with llama-server's additions (top_k, min_p, repeat_penalty, id_slot, ...)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field

from stratakv.serve.api.schemas import SLOT, Bias, Body, NewTokens, SamplingBody, Stops, TokenId

MAX_N = 16
MAX_PROMPTS = 64

Tokens = Annotated[list[TokenId], Field(min_length=1)]
Each = TypeVar("Each")
Many = Annotated[list[Each], Field(min_length=1, max_length=MAX_PROMPTS)]


class StreamOptions(Body):
    """include_usage: a last chunk with the numbers of tokens. include_obfuscation: off, nothing is padded here."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Common(SamplingBody):
    model: str | None = Field(None, max_length=512, description="any name is taken: this server has one model")
    n: int | None = Field(None, ge=1, le=MAX_N)
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, Bias] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    id_slot: int | None = SLOT
    # Labels: they change no answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionBody(_Common):
    """POST /v1/completions"""

    prompt: str | Tokens | Many[str] | Many[Tokens]
    max_tokens: NewTokens | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: Literal[1] | None = None


class JsonSchema(Body):
    """OpenAI's wrapper of a schema; strict is always on."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """json_schema takes OpenAI's form; llama-server's, the schema beside the type, is read too."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextPart(Body):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """arguments: JSON text, or the object itself."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class MessageCall(Body):
    """A tool call that the model made before."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MessageCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # What answers hold and clients send back
    refusal: None = None
    annotations: list[Any] | None = None


class FunctionTool(Body):
    """name, what it is for, and the JSON schema of its arguments."""

    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionTool


class NamedFunction(Body):
    """Which tool."""

    name: str


class NamedTool(Body):
    """This tool must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatBody(_Common):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TemplateBody(Body):
    """POST /apply-template"""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=4096)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
