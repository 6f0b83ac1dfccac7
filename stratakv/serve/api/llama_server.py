"""llama-server's own endpoints: /health, /props, /tokenize, /detokenize, /completion."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv.serve.api.binding import asked_grammar
from stratakv.serve.api.completion import TicketStream, gather, merge, submit_all, timings
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.openai import FINGERPRINT, finite
from stratakv.serve.api.requests import generation_request, note_headers, notes_of, sse, stream_errors
from stratakv.serve.api.schemas_llama import DetokenizeBody, NativeBody, TokenizeBody
from stratakv.serve.api.settings import Context
from stratakv.serve.request import Finish, GenerationRequest, GrammarSpec, TokenInfo
from stratakv.serve.samplers import SamplingParams

if TYPE_CHECKING:
    from stratakv.serve.ticket import Ticket

_MISSING = object()
_NOT_SHOWN = ("logit_bias", "logprobs")


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(tags=["llama-server"])
    settings, prompter = context.settings, context.prompter

    @routes.get("/health")
    @routes.get("/v1/health", include_in_schema=False)
    async def health() -> JSONResponse:
        snapshot = context.engine.snapshot()
        if not snapshot.healthy:
            raise ApiError(snapshot.why or "the model does not run", status=503, code="unhealthy")
        return JSONResponse({"status": "ok"})

    @routes.get("/props")
    async def props() -> JSONResponse:
        snapshot = context.engine.snapshot()
        params = generation_settings(SamplingParams(), settings.n_predict, ())
        return JSONResponse(
            {
                "default_generation_settings": {"params": params, "n_ctx": settings.context},
                "total_slots": settings.slots,
                "model_alias": settings.alias,
                "model_path": settings.model_path,
                "chat_template": prompter.template,
                "modalities": {"vision": False, "audio": False},
                "build_info": FINGERPRINT,
                "is_sleeping": False,
                "stratakv": {
                    "profile": snapshot.profile,
                    "bytes_per_token": snapshot.bytes_per_token,
                    "context": settings.context,
                    "fallback_template": prompter.own_template is None,
                    "batching": snapshot.batching,
                    "lost": [asdict(loss) for loss in snapshot.lost],
                },
            }
        )

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> JSONResponse:
        special, parse = bool(body.add_special), body.parse_special is not False
        ids = await prompter.run(prompter.encode, body.content, special, parse)
        if not body.with_pieces:
            return JSONResponse({"tokens": ids})
        pieces = await prompter.run(prompter.pieces, ids)
        return JSONResponse({"tokens": [{"id": i, "piece": piece} for i, piece in zip(ids, pieces, strict=True)]})

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> JSONResponse:
        return JSONResponse({"content": await prompter.run(prompter.decode, body.tokens)})

    @routes.post("/completion")
    @routes.post("/completions", include_in_schema=False)
    async def completion(body: NativeBody, http: Request) -> Response:
        prompts = await prompter.run(_prompts, context, body.prompt)
        grammar = asked_grammar(body)
        requests = [_request(context, body, prompt, grammar) for prompt in prompts]
        tickets = submit_all(context.engine, requests)
        final = _Final(context, body, requests)
        if body.stream:
            chunks = _stream(final, tickets)
            headers = note_headers(grammar)
            return TicketStream(stream_errors(chunks), tickets, "text/event-stream", settings.send_seconds, headers)
        answers = await gather(http, tickets)
        results = [
            final.body(i, answer.text, answer.tokens, answer.finish, answer.slot) for i, answer in enumerate(answers)
        ]
        return JSONResponse(results if final.many else results[0], headers=note_headers(grammar))

    return routes


def generation_settings(sampling: SamplingParams, n_predict: int, stop: Sequence[str]) -> dict[str, Any]:
    """llama-server's object of that name, as far as there is something behind it here."""
    numbers = {each.name: getattr(sampling, each.name) for each in fields(sampling) if each.name not in _NOT_SHOWN}
    return {
        "n_predict": n_predict,
        **numbers,
        "seed": -1 if sampling.seed is None else sampling.seed,
        "stop": list(stop),
        "n_probs": sampling.logprobs or 0,
    }


def _prompts(context: Context, prompt: Any) -> list[tuple[int, ...]]:
    """A list of texts, or of lists, is several prompts; a list with a token id in it is one."""
    many = _is_many(prompt)
    if many and len(prompt) > context.settings.max_choices:
        raise ApiError(f"{len(prompt)} prompts at once: at most {context.settings.max_choices}", param="prompt")
    if not many and isinstance(prompt, list) and any(isinstance(part, list) for part in prompt):
        raise ApiError("token ids and lists of them can't be mixed", param="prompt")
    return [context.prompter.prompt(each) for each in (prompt if many else [prompt])]


def _is_many(prompt: Any) -> bool:
    return isinstance(prompt, list) and not any(isinstance(part, int) for part in prompt)


def _request(
    context: Context, body: NativeBody, prompt: tuple[int, ...], grammar: GrammarSpec | None
) -> GenerationRequest:
    asked = body.max_tokens if body.n_predict is None else body.n_predict
    request = generation_request(context, body, prompt, asked=asked, logprobs=body.n_probs or None, grammar=grammar)
    return replace(request, max_tokens=max(1, request.max_tokens))


class _Final:
    """Makes the objects that llama-server answers with."""

    def __init__(self, context: Context, body: NativeBody, requests: Sequence[GenerationRequest]) -> None:
        self._context, self._body, self._requests = context, body, requests
        self.many = _is_many(body.prompt)

    def piece(self, index: int, text: str, tokens: Sequence[TokenInfo]) -> dict[str, Any]:
        """A part of a streamed answer."""
        ids = [token.id for token in tokens] if self._body.return_tokens or self._body.stream else []
        data: dict[str, Any] = {"index": index, "content": text, "tokens": ids, "stop": False}
        if self._body.n_probs:
            data["completion_probabilities"] = _probabilities(tokens, bool(self._body.post_sampling_probs))
        return data

    def chosen(self, data: dict[str, Any]) -> dict[str, Any]:
        """Of a whole answer what `response_fields` names, under the whole path, as llama-server does."""
        fields = self._body.response_fields
        if not fields:
            return data
        found = {}
        for field in fields:
            value: Any = data
            for key in field.split("/"):
                value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
            if value is not _MISSING:
                found[field] = value
        return found

    def body(
        self, index: int, text: str, tokens: Sequence[TokenInfo], finish: Finish, slot: int | None
    ) -> dict[str, Any]:
        """The whole answer, or the end of a streamed one."""
        if self._body.n_predict == 0:
            text, tokens = "", ()
        request = self._requests[index]
        kinds = {"length": "limit", "stop": "word" if finish.stop_string is not None else "eos"}
        data = {
            **self.piece(index, text, tokens),
            "id_slot": -1 if slot is None else slot,
            "stop": True,
            "model": self._context.settings.alias,
            "tokens_predicted": finish.completion_tokens,
            "tokens_evaluated": finish.prompt_tokens,
            "tokens_cached": finish.cached_tokens,
            "generation_settings": generation_settings(request.sampling, request.max_tokens, request.stop),
            "has_new_line": "\n" in text,
            "truncated": False,
            "stop_type": kinds.get(finish.reason, "none"),
            "stopping_word": finish.stop_string or "",
            "timings": timings(finish),
            **notes_of(request.grammar),
        }
        return self.chosen(data)


async def _stream(final: _Final, tickets: Sequence[Ticket]) -> AsyncIterator[str]:
    async for index, item in merge(tickets):
        if isinstance(item, Finish):
            yield sse(final.body(index, "", (), item, tickets[index].slot))
        elif final._body.n_predict != 0 and (item.text or item.tokens):
            extra = {"timings": timings(item.progress)} if final._body.timings_per_token else {}
            yield sse({**final.piece(index, item.text, item.tokens), **extra})


def _probabilities(tokens: Sequence[TokenInfo], after: bool) -> list[dict[str, Any]]:
    """llama-server's list. after: the probabilities are those after the samplers, and named so."""

    def one(id_: int, text: str, logprob: float | None) -> dict[str, Any]:
        value = {"prob": math.exp(finite(logprob))} if after else {"logprob": finite(logprob)}
        return {"id": id_, "token": text, "bytes": list(text.encode("utf-8", "surrogatepass")), **value}

    top = "top_probs" if after else "top_logprobs"
    return [{**one(token.id, token.text, token.logprob), top: [one(*each) for each in token.top]} for token in tokens]
