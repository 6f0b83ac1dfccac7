"""Small steps that the families of endpoints share between body and engine, and back into a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from stratakv.serve.api.errors import ApiError, as_api_error
from stratakv.serve.api.schemas import sampling_params, stop_list
from stratakv.serve.api.schemas_llama import LlamaFields
from stratakv.serve.api.settings import Context
from stratakv.serve.request import GenerationRequest, GrammarSpec, PromptTooLong


def new_tokens(context: Context, prompt_tokens: int, asked: int | None) -> int:
    """New tokens at most: what was asked, else -n, else what fits; never more than fits. -1 is "what fits"."""
    room = context.settings.context - prompt_tokens
    if room < min(1, 1 if asked is None else abs(asked)):
        raise PromptTooLong(prompt_tokens, context.settings.context - 1)
    limit = context.settings.n_predict if asked is None else asked
    return room if limit < 0 else min(limit, room)


def generation_request(
    context: Context,
    body: LlamaFields,
    prompt: tuple[int, ...],
    *,
    asked: int | None,
    logprobs: int | None,
    grammar: GrammarSpec | None = None,
    stops: tuple[str, ...] = (),
    score_prompt: bool = False,
) -> GenerationRequest:
    """The engine's request for one answer. asked: new tokens; logprobs: alternatives beside each; stops: beside the body's."""
    late = body.t_max_predict_ms
    return GenerationRequest(
        prompt,
        new_tokens(context, len(prompt), body.n_predict if asked is None else asked),
        sampling_params(body, vocabulary=context.prompter.vocabulary, logit_bias=body.logit_bias, logprobs=logprobs),
        (*stop_list(body.stop), *stops),
        ignore_eos=bool(body.ignore_eos),
        grammar=grammar,
        slot=slot_of(context, body.id_slot),
        cache_prompt=body.cache_prompt is not False,
        score_prompt=score_prompt,
        post_sampling=bool(body.post_sampling_probs),
        max_ms=late if late and late > 0 else None,
    )


def notes_of(grammar: GrammarSpec | None) -> dict[str, Any]:
    """What an answer says beside itself: the field `warnings`, where something that was asked for does not bind it."""
    return {"warnings": list(grammar.notes)} if grammar is not None and grammar.notes else {}


def note_headers(grammar: GrammarSpec | None) -> dict[str, str]:
    """The same as an HTTP header, for streams too."""
    notes = "; ".join(grammar.notes)[:2000] if grammar is not None else ""
    return {"Warning": f"299 stratakv {json.dumps(notes)}"} if notes else {}


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
