"""Ollama's /api/tags, /api/ps, /api/show, /api/version, /api/generate and /api/chat; streams are NDJSON."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv import __version__
from stratakv.serve.api.answer_text import AnswerText, Parts
from stratakv.serve.api.completion import TicketStream, gather, merge, submit_all
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.openai import finite
from stratakv.serve.api.prompts import begun_answer
from stratakv.serve.api.reasoning import marks_of, thinking_variables
from stratakv.serve.api.requests import new_tokens, note_headers, stream_errors
from stratakv.serve.api.schemas import json_object, sampling_params, schema_grammar, stop_list
from stratakv.serve.api.schemas_ollama import (
    Format,
    GenerateBody,
    OllamaChatBody,
    OllamaMessage,
    Options,
    ShowBody,
)
from stratakv.serve.api.settings import Context
from stratakv.serve.api.turn import Turn, tool_dicts, turn_for
from stratakv.serve.request import Finish, GenerationRequest, GrammarSpec, PromptTooLong, TokenInfo

if TYPE_CHECKING:
    from stratakv.serve.ticket import Ticket


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(prefix="/api", tags=["Ollama"])
    settings, prompter = context.settings, context.prompter
    loaded = context.engine.loaded

    @routes.get("/version")
    async def version() -> JSONResponse:
        return JSONResponse({"version": __version__})

    @routes.get("/tags")
    async def tags() -> JSONResponse:
        return JSONResponse({"models": [_listed(context)]})

    @routes.get("/ps")
    async def running() -> JSONResponse:
        extra = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": settings.context}
        return JSONResponse({"models": [{**_listed(context), **extra}]})

    @routes.post("/show")
    async def show(body: ShowBody) -> JSONResponse:
        _check_model(context, body.model)
        kind, snapshot = loaded.model.config.model_type, context.engine.snapshot()
        info = {
            "general.architecture": kind,
            "general.parameter_count": settings.parameters,
            f"{kind}.context_length": loaded.geometry.context,
            f"{kind}.block_count": len(loaded.geometry.layers),
            "stratakv.profile": snapshot.profile,
            "stratakv.bytes_per_token": snapshot.bytes_per_token,
            "stratakv.context": settings.context,
        }
        return JSONResponse(
            {
                "modelfile": f"FROM {settings.alias}\n",
                "parameters": f"num_ctx {settings.context}",
                "template": prompter.template,
                "details": _details(context),
                "model_info": info,
                "capabilities": ["completion", "tools", *(["thinking"] if marks_of(prompter.own_template) else [])],
                "modified_at": _now(context.started),
            }
        )

    @routes.post("/generate")
    async def generate(body: GenerateBody, http: Request) -> Response:
        _check_model(context, body.model)
        if not body.prompt:
            return JSONResponse({**_head(context), "response": "", "done": True, "done_reason": "load"})
        prompt = await prompter.run(_prompt, context, body)
        request = _request(context, body, prompt)
        turn = Turn(request) if body.raw else await turn_for(context, request)

        def shape(parts: Parts) -> dict[str, Any]:
            return {"response": parts.said, **({"thinking": parts.thought} if parts.thought else {})}

        return await _answer(context, http, body, turn, shape, prompt)

    @routes.post("/chat")
    async def chat(body: OllamaChatBody, http: Request) -> Response:
        _check_model(context, body.model)
        if not body.messages:
            message = {"role": "assistant", "content": ""}
            return JSONResponse({**_head(context), "message": message, "done": True, "done_reason": "load"})
        tools = tool_dicts(body.tools)
        messages = [_message(message) for message in body.messages]
        prompt = await prompter.run(_chat_prompt, context, body, messages, tools)
        names = tuple(tool["function"]["name"] for tool in tools)
        request = _request(context, body, prompt)
        turn = await turn_for(context, request, names=names, begun=begun_answer(messages))

        def shape(parts: Parts) -> dict[str, Any]:
            message: dict[str, Any] = {"role": "assistant", "content": parts.said}
            if parts.thought:
                message["thinking"] = parts.thought
            if parts.calls:
                message["tool_calls"] = [{"function": {"name": c.name, "arguments": c.arguments}} for c in parts.calls]
            return {"message": message}

        return await _answer(context, http, body, turn, shape, None)

    return routes


async def _answer(
    context: Context,
    http: Request,
    body: GenerateBody | OllamaChatBody,
    turn: Turn,
    shape: Callable[[Parts], dict[str, Any]],
    prompt: tuple[int, ...] | None,
) -> Response:
    """prompt: given where the answer's `context` is wanted, the tokens so far."""
    started, reader = time.perf_counter(), turn.reader()
    tickets = submit_all(context.engine, [turn.request])
    headers = note_headers(_grammar(body.format))
    if body.stream is not False:
        lines = _stream(context, tickets, reader, shape, prompt, bool(body.logprobs), started)
        seconds = context.settings.send_seconds
        return TicketStream(stream_errors(lines, line=True), tickets, "application/x-ndjson", seconds, headers)
    answer = (await gather(http, tickets))[0]
    parts = reader.whole(answer.text, answer.tokens)
    result = {**_head(context), **shape(parts), **_end(answer.finish, started)}
    if prompt is not None:
        result["context"] = [*prompt, *(token.id for token in answer.tokens)]
    if body.logprobs:
        result["logprobs"] = _logprobs(answer.tokens)
    return JSONResponse(result, headers=headers)


async def _stream(
    context: Context,
    tickets: Sequence[Ticket],
    reader: AnswerText,
    shape: Callable[[Parts], dict[str, Any]],
    prompt: tuple[int, ...] | None,
    logprobs: bool,
    started: float,
) -> AsyncIterator[str]:
    tokens = list(prompt or ())
    async for _, item in merge(tickets):
        if isinstance(item, Finish):
            parts = reader.close()
            if any(parts):
                yield json.dumps({**_head(context), **shape(parts), "done": False}, ensure_ascii=False) + "\n"
            end = {**_head(context), **shape(Parts()), **_end(item, started)}
            if prompt is not None:
                end["context"] = tokens
            yield json.dumps(end) + "\n"
            continue
        tokens += [token.id for token in item.tokens]
        parts = reader.feed(item.text, len(item.tokens))
        if any(parts) or logprobs:
            line = {**_head(context), **shape(parts), "done": False}
            if logprobs:
                line["logprobs"] = _logprobs(item.tokens)
            yield json.dumps(line, ensure_ascii=False) + "\n"


def _prompt(context: Context, body: GenerateBody) -> tuple[int, ...]:
    """Tokens of a prompt. truncate: what is too long loses tokens after the first num_keep."""
    prompt, room = _whole_prompt(context, body), context.settings.context - 1
    if not body.truncate or len(prompt) <= room:
        return prompt
    kept = min((body.options.num_keep if body.options else None) or 1, room)
    return (*prompt[:kept], *prompt[len(prompt) - room + kept :])


def _chat_prompt(
    context: Context, body: OllamaChatBody, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> tuple[int, ...]:
    """Tokens of a conversation. truncate: its oldest messages are left out until it fits, not the system's and not the last."""
    variables = _thinking(context, body.think)
    while True:
        try:
            prompt = context.prompter.chat(messages, tools, variables)
            new_tokens(context, len(prompt), None)
            return prompt
        except PromptTooLong:
            old = next((i for i, message in enumerate(messages[:-1]) if message["role"] != "system"), None)
            if not body.truncate or old is None:
                raise
            messages = messages[:old] + messages[old + 1 :]


def _whole_prompt(context: Context, body: GenerateBody) -> tuple[int, ...]:
    prompter, earlier = context.prompter, tuple(body.context or ())
    if body.raw:
        if body.system:
            raise ApiError("raw prompts take no system text", param="system")
        return prompter.prompt([*earlier, body.prompt or ""]) if earlier else prompter.prompt(body.prompt or "")
    messages = [{"role": "system", "content": body.system}] if body.system else []
    messages.append({"role": "user", "content": body.prompt or ""})
    ids = prompter.chat(messages, (), _thinking(context, body.think))
    return prompter.prompt([*earlier, *ids])


def _request(context: Context, body: GenerateBody | OllamaChatBody, prompt: tuple[int, ...]) -> GenerationRequest:
    options = body.options or Options.model_validate({})
    if options.num_ctx and options.num_ctx > context.settings.context:
        raise ApiError(
            f"num_ctx {options.num_ctx}: this server was started with {context.settings.context} tokens of context",
            param="num_ctx",
        )
    asked = options.num_predict
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    stops = () if isinstance(body, GenerateBody) and body.raw else context.prompter.chat_stops
    return GenerationRequest(
        prompt,
        max(1, new_tokens(context, len(prompt), asked)),
        sampling_params(options, vocabulary=context.prompter.vocabulary, logprobs=logprobs),
        (*stop_list(options.stop), *stops),
        grammar=_grammar(body.format),
    )


def _grammar(format_: Format | None) -> GrammarSpec | None:
    if not format_ and not isinstance(format_, dict):
        return None
    return json_object("format") if format_ == "json" else schema_grammar(format_, "format")


def _message(message: OllamaMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking is not None:
        plain["reasoning_content"] = message.thinking
    if message.tool_name is not None:
        plain["name"] = message.tool_name
    if message.tool_calls:
        plain["tool_calls"] = [
            {"type": "function", "function": call.function.model_dump()} for call in message.tool_calls
        ]
    return plain


def _thinking(context: Context, think: bool | str | None) -> dict[str, Any]:
    """The variables by which Qwen3's and similar templates are told whether, and how much, to think aloud."""
    template = context.prompter.own_template or ""
    if (
        think
        and marks_of(template) is None
        and "enable_thinking" not in template
        and "reasoning_effort" not in template
    ):
        raise ApiError(f"{context.settings.alias!r} does not support thinking", param="think")
    return thinking_variables(think if isinstance(think, bool) else None, think if isinstance(think, str) else None)


def _check_model(context: Context, name: str) -> None:
    alias = context.settings.alias
    if name.removesuffix(":latest") != alias.removesuffix(":latest"):
        raise ApiError(f"model {name[:200]!r} not found, this server has {alias!r}", status=404, param="model")


def _head(context: Context) -> dict[str, Any]:
    return {"model": context.settings.alias, "created_at": _now(time.time())}


def _end(finish: Finish, started: float) -> dict[str, Any]:
    total = time.perf_counter() - started
    return {
        "done": True,
        "done_reason": finish.reason,
        "total_duration": int(total * 1e9),
        "load_duration": 0,
        "prompt_eval_count": finish.prompt_tokens,
        "prompt_eval_duration": int(finish.prompt_ms * 1e6),
        "eval_count": finish.completion_tokens,
        "eval_duration": int(finish.decode_ms * 1e6),
    }


def _logprobs(tokens: Sequence[TokenInfo]) -> list[dict[str, Any]]:
    def one(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode("utf-8", "surrogatepass"))}

    return [
        {**one(token.text, token.logprob), "top_logprobs": [one(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]


def _listed(context: Context) -> dict[str, Any]:
    loaded, alias = context.engine.loaded, context.settings.alias
    name = alias if ":" in alias else f"{alias}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": _now(context.started),
        "size": loaded.weight_bytes,
        "digest": loaded.fingerprint,
        "details": _details(context),
    }


def _details(context: Context) -> dict[str, Any]:
    loaded = context.engine.loaded
    count = context.settings.parameters
    family = loaded.model.config.model_type
    return {
        "parent_model": "",
        "format": "gguf" if context.settings.model_path.endswith(".gguf") else "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M",
        "quantization_level": "",
    }


def _now(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
