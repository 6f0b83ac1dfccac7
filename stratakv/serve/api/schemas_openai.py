"""Request bodies of OpenAI's endpoints, with llama-server's additions (top_k, min_p, repeat_penalty, id_slot, ...)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from stratakv.serve.api.schemas import MAX_TOKENS, Body, NewTokens, Part, TokenId
from stratakv.serve.api.schemas_llama import LlamaFields

MAX_N = 16
MAX_PROMPTS = 64

Tokens = Annotated[list[TokenId], Field(min_length=1)]
Each = TypeVar("Each")
Many = Annotated[list[Each], Field(min_length=1, max_length=MAX_PROMPTS)]


class StreamOptions(Body):
    """include_usage: a last chunk with the numbers of tokens. include_obfuscation: off, nothing is padded here."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Common(LlamaFields):
    model: str | None = Field(None, max_length=512, description="any name is taken: this server has one model")
    n: int | None = Field(None, ge=1, le=MAX_N)
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's name for a schema or a grammar")
    # Labels, and wishes that change no answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    store: bool | None = Field(None, description="nothing is stored")


class CompletionBody(_Common):
    """POST /v1/completions"""

    prompt: str | Tokens | Many[str] | Many[Tokens]
    max_tokens: int | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="-1: as many as fit; 0: only read the prompt"
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = Field(None, description="the prompt too; with logprobs, those of its tokens")


class StructuredOutputs(Body):
    """vLLM's: one of these."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Annotated[str, Field(max_length=2**14)] | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)] | None = None
    grammar: Annotated[str, Field(max_length=2**16)] | None = Field(None, description="GBNF, or Lark")


class JsonSchema(Part):
    """OpenAI's wrapper of a schema. strict: what can't bind an answer is an error."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """json_schema takes OpenAI's form; llama-server's, the schema beside the type, is read too."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextPart(Part):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


class CalledFunction(Part):
    """arguments: JSON text, or the object itself."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class MessageCall(Part):
    """A tool call that the model made before."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Part):
    """One message of a conversation. What answers hold beside it and clients send back (annotations, ...) is not read."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MessageCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    # These would change the answer
    function_call: None = None
    audio: None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=4096)]


class FunctionTool(Part):
    """name, what it is for, and the JSON schema of its arguments."""

    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    """A function that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionTool


class NamedFunction(Part):
    """Which tool."""

    name: str


class NamedTool(Part):
    """This tool must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class Thinking(Part):
    """Anthropic's and DeepSeek's way to say whether a model thinks aloud."""

    type: Literal["enabled", "disabled", "adaptive"]


class _Conversation(Body):
    """What makes a prompt of messages."""

    messages: Messages
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = Field(None, description="false: no beginning of an answer after the messages")
    continue_final_message: bool | None = Field(
        None, description="go on with the assistant's last message; without it, where it is the last one"
    )


class ChatBody(_Common, _Conversation):
    """POST /v1/chat/completions"""

    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = None
    thinking: Thinking | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    parse_tool_calls: bool | None = None
