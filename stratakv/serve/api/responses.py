"""OpenAI's /v1/responses: nothing is stored, so that every request brings its whole conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv.errors import UserError
from stratakv.serve.api.completion import TicketStream, gather, merge, submit_all
from stratakv.serve.api.errors import ApiError, as_api_error
from stratakv.serve.api.openai_chat import chat_logprobs
from stratakv.serve.api.requests import note_headers, notes_of
from stratakv.serve.api.response_events import Events
from stratakv.serve.api.responses_chat import chat_body, wants_logprobs
from stratakv.serve.api.schemas_responses import ResponsesBody
from stratakv.serve.api.settings import Context
from stratakv.serve.api.turn import Turn, turn_of
from stratakv.serve.request import Finish

if TYPE_CHECKING:
    from stratakv.serve.ticket import Ticket

_NAMES = {"messages": "input", "response_format": "text", "max_tokens": "max_output_tokens"}


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/v1/responses")
    @routes.post("/responses", include_in_schema=False)
    async def responses(body: ResponsesBody, http: Request) -> Response:
        try:
            turn = await turn_of(context, chat_body(body))
            tickets = submit_all(context.engine, [turn.request])
        except (ApiError, UserError) as error:
            known = as_api_error(error)
            known.param = _NAMES.get(known.param or "", known.param)  # in the names of this API
            raise known from None
        head = _head(context, body, turn)
        headers = note_headers(turn.request.grammar)
        if body.stream:
            stream = _events(head, turn, wants_logprobs(body), tickets)
            return TicketStream(stream, tickets, "text/event-stream", context.settings.send_seconds, headers)
        (answer,) = await gather(http, tickets)
        reader, events = turn.reader(), Events()
        events.add(
            reader.whole(answer.text, answer.tokens),
            chat_logprobs(answer.tokens)["content"] if wants_logprobs(body) else [],
        )
        events.close(answer.finish)
        end = _end(events, answer.finish, reader.thinking_tokens)
        return JSONResponse({**head, **end, **notes_of(turn.request.grammar)}, headers=headers)

    @routes.get("/v1/responses/{name}")
    @routes.delete("/v1/responses/{name}")
    @routes.post("/v1/responses/{name}/cancel")
    @routes.get("/v1/responses/{name}/input_items")
    async def kept(name: str) -> JSONResponse:
        raise ApiError(f"response {name[:100]!r} is not kept: this server stores no responses", status=404)

    return routes


def _head(context: Context, body: ResponsesBody, turn: Turn) -> dict[str, Any]:
    """What a response says about its request, from its first event on."""
    sampling = turn.request.sampling
    choice = body.tool_choice or "auto"
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text is not None else {}
    reasoning = body.reasoning
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": context.settings.alias,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [
            {"strict": None, "parameters": None, **tool.model_dump(exclude_none=True)} for tool in body.tools or ()
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _end(events: Events, finish: Finish, thinking_tokens: int) -> dict[str, Any]:
    """What a response says at its end."""
    cut = finish.reason == "length"
    return {
        "status": "incomplete" if cut else "completed",
        "completed_at": None if cut else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": events.output,
        "usage": {
            "input_tokens": finish.prompt_tokens,
            "input_tokens_details": {"cached_tokens": finish.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": finish.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": thinking_tokens},
            "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        },
    }


async def _events(head: dict[str, Any], turn: Turn, logprobs: bool, tickets: list[Ticket]) -> AsyncIterator[str]:
    events, reader = Events(), turn.reader()
    yield events.event("response.created", response=head)
    yield events.event("response.in_progress", response=head)
    try:
        async for _, item in merge(tickets):
            if not isinstance(item, Finish):
                probs = chat_logprobs(item.tokens)["content"] if logprobs else []
                for event in events.add(reader.feed(item.text, len(item.tokens)), probs):
                    yield event
                continue
            for event in (*events.add(reader.close(), []), *events.close(item)):
                yield event
            end = _end(events, item, reader.thinking_tokens)
            yield events.event(f"response.{end['status']}", response={**head, **end, **notes_of(turn.request.grammar)})
    except Exception as error:
        known = as_api_error(error)
        failed = {"code": "server_error", "message": known.message}
        yield events.event(
            "response.failed", response={**head, "status": "failed", "error": failed, "output": events.output}
        )
