"""Small steps that the families of endpoints share between body and engine, and back into a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from stratakv.serve.api.errors import ApiError, as_api_error
from stratakv.serve.api.settings import Context
from stratakv.serve.request import GenerationRequest, PromptTooLong


def new_tokens(context: Context, prompt_tokens: int, asked: int | None) -> int:
    """New tokens at most: what was asked, else -n, else what fits; never more than fits. -1 is "what fits"."""
    room = context.settings.context - prompt_tokens
    if room < 1:
        raise PromptTooLong(prompt_tokens, context.settings.context - 1)
    limit = context.settings.n_predict if asked is None else asked
    return room if limit < 0 else min(limit, room)


def choices(request: GenerationRequest, n: int | None) -> list[GenerationRequest]:
    """The same request n times. With a seed the next ones draw with the numbers after it: n equal answers help nobody."""
    sampling = request.sampling
    if sampling.seed is None:
        return [request] * (n or 1)
    seeds = [(sampling.seed + index) % 2**63 for index in range(n or 1)]
    return [replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds]


def slot_of(context: Context, slot: int | None) -> int | None:
    """A slot's number, None for any."""
    if slot is None or slot < 0:
        return None
    if slot >= context.settings.slots:
        raise ApiError(f"slot {slot}: this server has the slots 0 to {context.settings.slots - 1}", param="id_slot")
    return slot


def sse(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def stream_errors(chunks: AsyncIterator[str], line: bool = False) -> AsyncIterator[str]:
    """The same stream; an error in the middle becomes its last event (line: its last NDJSON line, in Ollama's form)."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        body = as_api_error(error).body("/api/" if line else "/")
        yield json.dumps(body) + "\n" if line else sse(body)
