"""OpenAI's /v1/models and /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv import __version__
from stratakv.serve.api.binding import asked_grammar
from stratakv.serve.api.completion import Completion, TicketStream, gather, merge, submit_all, timings
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.requests import choices, generation_request, note_headers, notes_of, sse, stream_errors
from stratakv.serve.api.schemas_openai import CompletionBody
from stratakv.serve.api.settings import Context
from stratakv.serve.request import Finish, TokenInfo

if TYPE_CHECKING:
    from stratakv.serve.ticket import Ticket

FINGERPRINT = f"stratakv-{__version__}"
_LEAST = -9999.0  # OpenAI's number for "practically impossible"; JSON has no infinity


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(tags=["OpenAI"])
    settings = context.settings

    @routes.get("/v1/models")
    @routes.get("/models", include_in_schema=False)
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model_object(context)]})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        if name != settings.alias:
            raise ApiError(
                f"no model {name[:200]!r} here, only {settings.alias!r}",
                status=404,
                code="model_not_found",
                param="model",
            )
        return JSONResponse(model_object(context))

    @routes.post("/v1/completions")
    async def completions(body: CompletionBody, http: Request) -> Response:
        prompts = await context.prompter.run(_prompts, context, body.prompt)
        logprobs = (body.n_probs or None) if body.logprobs is None else body.logprobs
        scored = bool(body.echo) and logprobs is not None
        grammar = asked_grammar(body)
        requests = [
            request
            for prompt in prompts
            for request in choices(
                generation_request(
                    context,
                    body,
                    prompt,
                    asked=body.max_tokens,
                    logprobs=logprobs,
                    grammar=grammar,
                    score_prompt=scored,
                ),
                body.n,
            )
        ]
        if len(requests) > settings.max_choices:
            raise ApiError(f"{len(requests)} answers at once: at most {settings.max_choices}", param="n")
        echoes = [""] * len(requests)
        if body.echo and not scored:
            echoes = [await context.prompter.run(context.prompter.decode, r.prompt, True) for r in requests]
        tickets = submit_all(context.engine, requests)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": settings.alias,
            "system_fingerprint": FINGERPRINT,
        }
        if body.stream:
            chunks = _stream(head, body, tickets, echoes, logprobs is not None)
            return TicketStream(
                stream_errors(chunks), tickets, "text/event-stream", settings.send_seconds, note_headers(grammar)
            )
        answers = await gather(http, tickets)
        said = [
            _choice(index, answer, echo, body, logprobs is not None)
            for index, (answer, echo) in enumerate(zip(answers, echoes, strict=True))
        ]
        finishes = [answer.finish for answer in answers]
        numbers = {"usage": usage(finishes), "timings": timings(finishes[0])}
        return JSONResponse({**head, "choices": said, **numbers, **notes_of(grammar)}, headers=note_headers(grammar))

    return routes


def model_object(context: Context) -> dict[str, Any]:
    """The model as /v1/models lists it, with llama-server's `meta`."""
    loaded = context.engine.loaded
    config = loaded.model.config.get_text_config(decoder=True)
    snapshot = context.engine.snapshot()
    meta = {
        "n_vocab": context.prompter.vocabulary,
        "n_ctx_train": loaded.geometry.context,
        "n_ctx": context.settings.context,
        "n_embd": getattr(config, "hidden_size", 0),
        "n_params": context.settings.parameters,
        "size": loaded.weight_bytes,
        "profile": snapshot.profile,
        "bytes_per_token": snapshot.bytes_per_token,
    }
    created = int(context.started)
    return {"id": context.settings.alias, "object": "model", "created": created, "owned_by": "stratakv", "meta": meta}


def usage(finishes: Sequence[Finish]) -> dict[str, Any]:
    """Tokens of all answers together."""
    prompt = sum(finish.prompt_tokens for finish in finishes)
    completion = sum(finish.completion_tokens for finish in finishes)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(finish.cached_tokens for finish in finishes)},
    }


def finite(logprob: float | None) -> float:
    """A logprob that JSON can hold."""
    return max(logprob, _LEAST) if logprob is not None else _LEAST


def text_logprobs(tokens: Sequence[TokenInfo], offset: int) -> dict[str, Any]:
    """The completions' form. offset: characters before the first of these tokens. A prompt's first token has no probability."""
    offsets, tops = [], []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
        best: dict[str, float] = {}
        for _, text, logprob in token.top:  # several tokens may look alike: the likeliest counts
            best.setdefault(text, finite(logprob))
        tops.append(None if token.logprob is None else best)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _prompts(context: Context, prompt: Any) -> list[tuple[int, ...]]:
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return [context.prompter.prompt(each) for each in (prompt if many else [prompt])]


def _choice(index: int, answer: Completion, echo: str, body: CompletionBody, logprobs: bool) -> dict[str, Any]:
    prompt = answer.prompt
    tokens = [*(prompt.tokens if prompt else ()), *answer.tokens]
    choice: dict[str, Any] = {
        "index": index,
        "text": (prompt.text if prompt else echo) + answer.text,
        "finish_reason": answer.finish.reason,
        "logprobs": text_logprobs(tokens, 0) if logprobs else None,
    }
    if body.return_tokens:
        choice["tokens"] = [token.id for token in answer.tokens]
    return choice


async def _stream(
    head: dict[str, Any], body: CompletionBody, tickets: Sequence[Ticket], echoes: list[str], logprobs: bool
) -> AsyncIterator[str]:
    finishes, said = [], [0] * len(tickets)
    for index, echo in enumerate(echoes):
        if echo:
            yield sse({**head, "choices": [{"index": index, "text": echo, "finish_reason": None, "logprobs": None}]})
    async for index, item in merge(tickets):
        choice: dict[str, Any] = {"index": index, "text": "", "finish_reason": None, "logprobs": None}
        extra: dict[str, Any] = {}
        if isinstance(item, Finish):
            finishes.append(item)
            choice["finish_reason"], extra = item.reason, {"timings": timings(item)}
        else:
            choice["text"] = item.text
            if logprobs:
                choice["logprobs"] = text_logprobs(item.tokens, said[index])
                said[index] += sum(len(token.text) for token in item.tokens)
            elif not item.text and not body.return_tokens:
                continue
            if body.return_tokens:
                choice["tokens"] = [] if item.prompt else [token.id for token in item.tokens]
            if body.timings_per_token:
                extra = {"timings": timings(item.progress)}
        yield sse({**head, "choices": [choice], **extra})
    if body.stream_options and body.stream_options.include_usage:
        yield sse({**head, "choices": [], "usage": usage(finishes)})
    yield "data: [DONE]\n\n"
