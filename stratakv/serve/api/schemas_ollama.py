"""Request bodies of Ollama's endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stratakv.serve.api.schemas import MAX_TOKENS, Body, Part, SamplingBody, Stops, TokenId
from stratakv.serve.api.schemas_openai import CalledFunction, Tool

Format = Literal["", "json"] | dict[str, Any]
Load = Annotated[int, Field(ge=-1, le=MAX_TOKENS)]


class Options(SamplingBody):
    """Sampling, and what Ollama reads when it loads a model: fixed here when the server starts."""

    num_predict: int | None = Field(None, ge=-2, le=MAX_TOKENS, description="-1 and -2: as many as fit")
    stop: Stops | None = None
    num_ctx: int | None = Field(None, ge=0, le=MAX_TOKENS, description="at most the server's -c")
    # The same answers, at another speed
    num_batch: Load | None = None
    num_gpu: Load | None = None
    main_gpu: Load | None = None
    num_thread: Load | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    low_vram: bool | None = None
    numa: bool | None = None
    num_keep: Load | None = Field(None, description="of a prompt that is cut, see truncate")
    num_gqa: Load | None = None
    f16_kv: bool | None = Field(None, description="the profile says what the cache stores")
    logits_all: bool | None = None
    vocab_only: Literal[False] | None = None
    embedding_only: Literal[False] | None = None


class _Generating(Body):
    model: str = Field(min_length=1, max_length=512)
    stream: bool | None = None
    format: Format | None = None
    options: Options | None = None
    keep_alive: float | str | None = Field(None, description="the model always stays loaded")
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    truncate: bool | None = Field(None, description="true: leave out what came first where the prompt is too long")
    shift: bool | None = Field(None, description="the context is never shifted: an answer ends with it")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    images: Annotated[list[str], Field(max_length=0)] | None = None


class GenerateBody(_Generating):
    """POST /api/generate. context: tokens of an earlier answer, to go on from."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[TokenId] | None = None
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None


class OllamaCall(Part):
    """A tool call that the model made before."""

    id: str | None = None
    type: str | None = None
    function: CalledFunction


class OllamaMessage(Part):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[str], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=128)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatBody(_Generating):
    """POST /api/chat"""

    messages: list[OllamaMessage] | None = Field(None, max_length=4096)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None


class ShowBody(Body):
    """POST /api/show"""

    model: str = Field(min_length=1, max_length=512)
    name: str | None = None
    verbose: bool | None = None
