"""OpenAI's /v1/models and /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv import __version__
from stratakv.serve.api.answers import TicketStream, gather, merge, submit_all, timings
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.requests import choices, new_tokens, slot_of, sse, stream_errors
from stratakv.serve.api.schemas import sampling_params, stop_list
from stratakv.serve.api.schemas_openai import CompletionBody
from stratakv.serve.api.settings import Context
from stratakv.serve.request import Finish, GenerationRequest, TokenInfo

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
    @routes.post("/completions", include_in_schema=False)
    async def completions(body: CompletionBody, http: Request) -> Response:
        prompts = await context.prompter.run(_prompts, context, body.prompt)
        requests = [
            request
            for prompt in prompts
            for request in choices(completion_request(context, body, prompt, logprobs=body.logprobs), body.n)
        ]
        if len(requests) > settings.max_choices:
            raise ApiError(f"{len(requests)} answers at once: at most {settings.max_choices}", param="n")
        echoes = [""] * len(requests)
        if body.echo:
            if body.logprobs is not None:
                raise ApiError("echo together with logprobs is not supported: leave one out", param="echo")
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
            usage_wanted = bool(body.stream_options and body.stream_options.include_usage)
            chunks = _stream(head, tickets, echoes, body.logprobs is not None, usage_wanted)
            return TicketStream(stream_errors(chunks), tickets, "text/event-stream", settings.send_seconds)
        answers = await gather(http, tickets)
        said = [
            {
                "index": index,
                "text": echoes[index] + answer.text,
                "finish_reason": answer.finish.reason,
                "logprobs": None if body.logprobs is None else text_logprobs(answer.tokens, 0),
            }
            for index, answer in enumerate(answers)
        ]
        finishes = [answer.finish for answer in answers]
        return JSONResponse({**head, "choices": said, "usage": usage(finishes), "timings": timings(finishes[0])})

    return routes


def model_object(context: Context) -> dict[str, Any]:
    """The model as /v1/models lists it, with llama-server's `meta`."""
    loaded = context.engine.loaded
    config = loaded.model.config.get_text_config(decoder=True)
    meta = {
        "n_vocab": context.prompter.vocabulary,
        "n_ctx_train": loaded.geometry.context,
        "n_ctx": context.settings.context,
        "n_embd": getattr(config, "hidden_size", 0),
        "n_params": context.settings.parameters,
        "size": loaded.weight_bytes,
    }
    created = int(context.started)
    return {"id": context.settings.alias, "object": "model", "created": created, "owned_by": "stratakv", "meta": meta}


def completion_request(
    context: Context, body: CompletionBody, prompt: tuple[int, ...], *, logprobs: int | None
) -> GenerationRequest:
    """The engine's request for one answer."""
    return GenerationRequest(
        prompt,
        new_tokens(context, len(prompt), body.max_tokens),
        sampling_params(body, vocabulary=context.prompter.vocabulary, logit_bias=body.logit_bias, logprobs=logprobs),
        stop_list(body.stop),
        ignore_eos=bool(body.ignore_eos),
        slot=slot_of(context, body.id_slot),
        cache_prompt=body.cache_prompt is not False,
    )


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
    """The completions' form. offset: characters before the first of these tokens."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [{text: finite(logprob) for _, text, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _prompts(context: Context, prompt: Any) -> list[tuple[int, ...]]:
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return [context.prompter.prompt(each) for each in (prompt if many else [prompt])]


async def _stream(
    head: dict[str, Any], tickets: Sequence[Ticket], echoes: list[str], logprobs: bool, usage_wanted: bool
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
            elif not item.text:
                continue
        yield sse({**head, "choices": [choice], **extra})
    if usage_wanted:
        yield sse({**head, "choices": [], "usage": usage(finishes)})
    yield "data: [DONE]\n\n"
