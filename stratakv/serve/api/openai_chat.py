"""OpenAI's /v1/chat/completions: templates, tools, response formats."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv.serve.api.answer_text import AnswerText, Parts
from stratakv.serve.api.completion import Completion, TicketStream, gather, merge, submit_all, timings
from stratakv.serve.api.openai import FINGERPRINT, finite, usage
from stratakv.serve.api.requests import choices, note_headers, notes_of, sse, stream_errors
from stratakv.serve.api.schemas_openai import ChatBody
from stratakv.serve.api.settings import Context
from stratakv.serve.api.tools import ToolCall
from stratakv.serve.api.turn import prompt_arguments, tool_dicts, turn_of
from stratakv.serve.request import Finish, TokenInfo

if TYPE_CHECKING:
    from stratakv.serve.ticket import Ticket


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(tags=["OpenAI"])
    settings = context.settings

    @routes.post("/v1/chat/completions")
    @routes.post("/chat/completions", include_in_schema=False)
    async def chat(body: ChatBody, http: Request) -> Response:
        turn = await turn_of(context, body)
        tickets = submit_all(context.engine, choices(turn.request, body.n))
        texts = [turn.reader() for _ in tickets]
        head = {"created": int(time.time()), "model": settings.alias, "system_fingerprint": FINGERPRINT}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", **head}
        grammar, logprobs = turn.request.grammar, turn.request.sampling.logprobs is not None
        if body.stream:
            head["object"] = "chat.completion.chunk"
            chunks = stream_errors(_stream(head, body, tickets, texts, logprobs))
            headers = note_headers(grammar)
            return TicketStream(chunks, tickets, "text/event-stream", settings.send_seconds, headers)
        answers = await gather(http, tickets)
        said = [
            _choice(index, answer, text, body, logprobs)
            for index, (answer, text) in enumerate(zip(answers, texts, strict=True))
        ]
        finishes = [answer.finish for answer in answers]
        head["object"] = "chat.completion"
        numbers = {"usage": _usage(finishes, texts), "timings": timings(finishes[0])}
        return JSONResponse({**head, "choices": said, **numbers, **notes_of(grammar)}, headers=note_headers(grammar))

    @routes.post("/apply-template", tags=["llama-server"])
    async def apply_template(body: ChatBody) -> JSONResponse:
        tools = [] if body.tool_choice == "none" else tool_dicts(body.tools)
        arguments = prompt_arguments(body, tools)
        return JSONResponse({"prompt": await context.prompter.run(context.prompter.chat_text, *arguments)})

    return routes


def chat_logprobs(tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    """The chat's form."""

    def one(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode("utf-8", "surrogatepass"))}

    content = [
        {**one(token.text, token.logprob), "top_logprobs": [one(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _choice(index: int, answer: Completion, reader: AnswerText, body: ChatBody, logprobs: bool) -> dict[str, Any]:
    parts = reader.whole(answer.text, answer.tokens)
    said, legacy = parts.said, body.reasoning_format == "deepseek-legacy"
    message: dict[str, Any] = {"role": "assistant", "content": answer.text if legacy else said, "refusal": None}
    if parts.thought:
        message["reasoning_content"] = parts.thought
    reason: str = answer.finish.reason
    if parts.calls:
        message |= {"content": message["content"] or None, "tool_calls": [call.openai() for call in parts.calls]}
        reason = "tool_calls"
    choice = {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(answer.tokens) if logprobs else None,
        "finish_reason": reason,
    }
    if body.return_tokens:
        choice["tokens"] = [token.id for token in answer.tokens]
    return choice


async def _stream(
    head: dict[str, Any],
    body: ChatBody,
    tickets: Sequence[Ticket],
    texts: Sequence[AnswerText],
    logprobs: bool,
) -> AsyncIterator[str]:
    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, **fields: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": fields.pop("logprobs", None), "finish_reason": reason}
        return sse({**head, "choices": [choice], **fields})

    def deltas(index: int, parts: Parts, whole: str, **fields: Any) -> list[str]:
        said = whole if body.reasoning_format == "deepseek-legacy" else parts.said
        found = [{"reasoning_content": parts.thought}] if parts.thought else []
        if said or (fields.get("logprobs") and not found):
            found.append({"content": said})
        return [chunk(index, delta, **(fields if place == 0 else {})) for place, delta in enumerate(found)]

    finishes: list[Finish] = []
    for index in range(len(tickets)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, item in merge(tickets):
        if not isinstance(item, Finish):
            parts = texts[index].feed(item.text, len(item.tokens))
            extra = {"timings": timings(item.progress)} if body.timings_per_token else {}
            if logprobs:
                extra["logprobs"] = chat_logprobs(item.tokens)
            for part in deltas(index, parts, item.text, **extra):
                yield part
            continue
        finishes.append(item)
        parts = texts[index].close()
        for part in deltas(index, parts, ""):
            yield part
        if parts.calls:
            yield chunk(index, {"tool_calls": _call_deltas(parts.calls)})
        yield chunk(index, {}, "tool_calls" if parts.calls else item.reason, timings=timings(item))
    if body.stream_options and body.stream_options.include_usage:
        yield sse({**head, "choices": [], "usage": _usage(finishes, texts)})
    yield "data: [DONE]\n\n"


def _usage(finishes: Sequence[Finish], texts: Sequence[AnswerText]) -> dict[str, Any]:
    thought = sum(text.thinking_tokens for text in texts)
    return {**usage(finishes), **({"completion_tokens_details": {"reasoning_tokens": thought}} if thought else {})}


def _call_deltas(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [{"index": index, **call.openai()} for index, call in enumerate(calls)]
