"""What a caller holds of its request: an asynchronous iterator of pieces that ends with the finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from stratakv.serve.request import Finish, Piece


class Ticket:
    """`async for item in ticket`: Pieces, then exactly one Finish. Used in the event loop that it was made in.

    id: of the request. slot: where it runs, None while it waits.
    """

    def __init__(self, id_: int, cancel: Callable[[], None]) -> None:
        self.id = id_
        self.slot: int | None = None
        self.loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Piece | Finish] = asyncio.Queue()
        self._cancel = cancel
        self._ended = False

    def cancel(self) -> None:
        """Nobody wants the answer any more: pages are free after the step that is running."""
        self._cancel()

    def put(self, item: Piece | Finish) -> None:
        """Hand over an item, in the ticket's own loop."""
        self._items.put_nowait(item)

    def __aiter__(self) -> AsyncIterator[Piece | Finish]:
        return self

    async def __anext__(self) -> Piece | Finish:
        if self._ended:
            raise StopAsyncIteration
        item = await self._items.get()
        self._ended = isinstance(item, Finish)
        return item


async def collect(ticket: Ticket) -> tuple[str, list[Piece], Finish]:
    """The whole answer: its text, its pieces, and how it ended."""
    pieces: list[Piece] = []
    async for item in ticket:
        if isinstance(item, Finish):
            return "".join(piece.text for piece in pieces), pieces, item
        pieces.append(item)
    raise RuntimeError("a ticket ended without a Finish")
