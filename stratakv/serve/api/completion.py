"""Requests into the engine, answers out: whole or streamed. When the client leaves, its tickets are cancelled at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from stratakv.serve.api.errors import ApiError
from stratakv.serve.request import Finish, GenerationRequest, Piece, Progress, TokenInfo

if TYPE_CHECKING:
    from stratakv.serve.engine import Engine
    from stratakv.serve.ticket import Ticket

_CLIENT_LEFT = 499  # nobody reads it: the number that servers log for a client that closed its request


@dataclass
class Completion:
    """A whole answer. finish is set when it is complete."""

    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    prompt: Piece | None = None  # where it was scored
    finish: Finish = field(default_factory=lambda: Finish(reason="cancelled"))
    slot: int | None = None


def submit_all(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Ticket]:
    """Submit all of them, or none when one is refused."""
    tickets: list[Ticket] = []
    try:
        for request in requests:
            tickets.append(engine.submit(request))
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    return tickets


async def gather(http: Request, tickets: Sequence[Ticket]) -> list[Completion]:
    """The whole answers, in the tickets' order. Raises ApiError where one failed, or when the client has left."""
    work: asyncio.Future[list[Completion]] = asyncio.gather(*(_whole(ticket) for ticket in tickets))
    left: asyncio.Future[None] = asyncio.ensure_future(_client_leaves(http.receive))
    try:
        both: list[asyncio.Future[Any]] = [work, left]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError("the client left", status=_CLIENT_LEFT)
        return list(work.result())
    finally:
        for ticket in tickets:
            ticket.cancel()
        for task in (work, left):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def merge(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Piece | Finish]]:
    """(index of the ticket, what it brought), as it comes. Raises ApiError where one failed."""
    arrived: asyncio.Queue[tuple[int, Piece | Finish | BaseException]] = asyncio.Queue()

    async def pump(index: int, ticket: Ticket) -> None:
        try:
            async for item in ticket:
                arrived.put_nowait((index, item))
        except Exception as error:
            arrived.put_nowait((index, error))

    pumps = [asyncio.ensure_future(pump(index, ticket)) for index, ticket in enumerate(tickets)]
    try:
        unfinished = len(tickets)
        while unfinished:
            index, item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Finish):
                _check(item)
                unfinished -= 1
            yield index, item
    finally:
        for task in pumps:
            task.cancel()


class TicketStream(StreamingResponse):
    """A streamed answer. However it ends, its tickets are cancelled: done, client gone, or client too slow to take it."""

    def __init__(
        self,
        content: AsyncIterator[str],
        tickets: Sequence[Ticket],
        media_type: str,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(content, media_type=media_type, headers={"Cache-Control": "no-store", **(headers or {})})
        self._tickets, self._seconds = tickets, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._seconds):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            pass  # the connection is closed by the server when nothing ends the answer
        finally:
            for ticket in self._tickets:
                ticket.cancel()


def timings(finish: Progress) -> dict[str, Any]:
    """llama-server's object of that name."""
    computed = finish.prompt_tokens - finish.cached_tokens
    prompt, predicted = max(finish.prompt_ms, 1e-6), max(finish.decode_ms, 1e-6)
    return {
        "cache_n": finish.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": finish.prompt_ms,
        "prompt_per_token_ms": finish.prompt_ms / max(computed, 1),
        "prompt_per_second": 1e3 * computed / prompt,
        "predicted_n": finish.completion_tokens,
        "predicted_ms": finish.decode_ms,
        "predicted_per_token_ms": finish.decode_ms / max(finish.completion_tokens, 1),
        "predicted_per_second": 1e3 * max(finish.completion_tokens - 1, 0) / predicted,
    }


async def _whole(ticket: Ticket) -> Completion:
    answer = Completion(slot=ticket.slot)
    async for item in ticket:
        if isinstance(item, Finish):
            _check(item)
            answer.finish = item
        elif item.prompt:
            answer.prompt = item
        else:
            answer.text += item.text
            answer.tokens += item.tokens
    answer.slot = ticket.slot
    return answer


def _check(finish: Finish) -> None:
    if finish.reason == "error":
        status = 400 if finish.impossible else 500
        raise ApiError(finish.error or "the model failed at this request", status=status, code="generation_failed")
    if finish.reason == "cancelled":
        raise ApiError(finish.error or "the server ended this request", status=503, code="cancelled")


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
