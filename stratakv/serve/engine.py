"""The engine: requests in, pieces of text out, one thread that runs the model for all of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from stratakv.engine.load import LoadedModel
from stratakv.engine.positions import check_positions
from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile
from stratakv.serve import slot_files
from stratakv.serve.answer import Answer
from stratakv.serve.grammar import Grammars
from stratakv.serve.loop import Loop
from stratakv.serve.losses import losses
from stratakv.serve.paged_cache import Held, PagedCache
from stratakv.serve.request import EngineSnapshot, GenerationRequest, Limits, NotRunning, PromptTooLong, QueueFull
from stratakv.serve.scheduler import Scheduler
from stratakv.serve.sequence import Sequence
from stratakv.serve.snapshot import take_snapshot
from stratakv.serve.statistics import Statistics
from stratakv.serve.text import TextStream
from stratakv.serve.ticket import Ticket

T = TypeVar("T")


class Engine:
    """Serves many requests over one packed cache.

    Made and started once; `submit` and the slots' methods are called from event loops, `snapshot` from anywhere. UserError
    where the cache is too small for one request of `limits.context` tokens, or the model has learned fewer positions.
    """

    def __init__(self, loaded: LoadedModel, profile: Profile, limits: Limits) -> None:
        self.loaded, self.limits = loaded, limits
        check_positions(loaded.name, loaded.positions, limits.context, "a request of this server may have")
        self.cache = PagedCache(loaded, profile, limits)
        self.scheduler = Scheduler(
            self.cache.groups,
            self.cache.pools,
            slots=limits.slots,
            chunk=limits.prefill_chunk,
            keep_prefixes=self.cache.shares,
            by_page=limits.deterministic,
        )
        self.statistics = Statistics()
        self.loop = Loop(self.cache, self.scheduler, self.statistics, limits.prefill_chunk)
        text_config: Any = loaded.model.config.get_text_config(decoder=True)
        self.vocabulary = int(text_config.vocab_size)
        self.end_tokens = _end_tokens(loaded)
        self.grammars = Grammars(loaded.tokenizer, self.vocabulary, self.end_tokens)
        self.lost = losses(self.cache.runner, self.cache.groups, profile, self.grammars)
        self._token_text = lru_cache(maxsize=2**14)(lambda id_: str(loaded.tokenizer.decode([id_])))
        self._ids = itertools.count()
        self._accepting = False

    @property
    def healthy(self) -> bool:
        """Whether the loop runs."""
        return self.loop.healthy

    def start(self) -> None:
        """Start the model's loop."""
        self._accepting = True
        self.loop.start()

    async def stop(self, grace: float = 0.0) -> None:
        """Accept nothing more, let what runs finish within `grace` seconds, cancel the rest, end the loop."""
        self._accepting = False
        deadline = time.perf_counter() + grace
        while self.loop.answers and self.loop.failure is None and time.perf_counter() < deadline:
            await asyncio.sleep(0.02)
        await self.loop.stop()

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queue a request. Raises QueueFull, PromptTooLong, NotRunning, or UserError for what can't be meant."""
        self._check(request)
        if not self._accepting or self.loop.failure is not None:
            raise NotRunning(self.loop.failure or "the engine is stopping")
        matcher = self.grammars.matcher(request.grammar) if request.grammar is not None else None
        keys = self.cache.keys(request.prompt) if self.cache.shares else []
        with self.loop.lock:
            waiting, free = len(self.scheduler.waiting), len(self.scheduler.free_slots)
            if waiting >= self.limits.queue + free:
                self.statistics.count("refused")
                raise QueueFull(max(1.0, self.statistics.request_seconds * (1 + waiting / self.limits.slots)))
            sequence = Sequence(next(self._ids), request, list(request.prompt), keys, self.scheduler.new_tables())
            ticket = Ticket(sequence.id, lambda: self.loop.cancel(sequence))
            answer = Answer(
                sequence,
                ticket,
                TextStream(self.loaded.tokenizer, request.stop, request.shown, request.prompt[-1:]),
                matcher,
                limit=min(request.max_tokens, self.limits.context - len(request.prompt)),
                end_tokens=self.end_tokens,
                token_text=self._token_text,
            )
            self.statistics.count("requests")
            self.loop.add(answer)
        return ticket

    def snapshot(self) -> EngineSnapshot:
        """How the engine stands, as plain data."""
        with self.loop.lock:
            state = {"failure": self.loop.failure, "healthy": self.healthy, "lost": self.lost}
            return take_snapshot(self.cache, self.scheduler, self.statistics, **state)  # type: ignore[arg-type]

    async def save_slot(self, slot: int, path: str | Path) -> slot_files.Saved:
        """Write the whole pages of the prompt that last ran in a slot; UserError where there is nothing to write.

        The file appears in one step, or not at all.
        """
        self._check_files(slot)
        return await asyncio.to_thread(self._save_slot, slot, Path(path))

    async def restore_slot(self, slot: int, path: str | Path) -> slot_files.Saved:
        """Read a slot's pages back, for prompts that begin with its tokens; UserError for a file that doesn't fit, or damaged."""
        self._check_files(slot)
        return await asyncio.to_thread(self._restore_slot, slot, Path(path))

    # in a thread of their own to the end: who waits for them may be cancelled, and pages aren't let go while files are read

    def _save_slot(self, slot: int, path: Path) -> slot_files.Saved:
        def hold() -> Held:
            running = next((each for each in self.scheduler.running if each.slot == slot), None)
            tokens, keys = self.cache.slots[slot]
            if running is not None:
                tokens, keys = running.request.prompt, running.keys[: running.published]
            pages = self.scheduler.cached_prefix(keys, len(tokens) + 1)
            if not pages:
                raise UserError(
                    f"slot {slot} holds no whole page ({PAGE_TOKENS} tokens) of a prompt: there is nothing to save"
                )
            return self.cache.hold(tokens, keys, pages)

        held = self.loop.command(hold).result()
        try:
            return slot_files.write(self.cache, held, path)
        finally:
            self.loop.command(lambda: self.cache.let_go(held)).result()

    def _restore_slot(self, slot: int, path: Path) -> slot_files.Saved:
        found = slot_files.read(self.cache, path)
        held = self.loop.command(lambda: self.cache.take(found.tokens)).result()
        done = False

        def leave() -> None:
            if done:
                self.cache.slots[slot] = (found.tokens, self.cache.publish(held))
            self.cache.let_go(held)

        try:
            self.cache.write(held, found.states)
            done = True
        finally:
            self.loop.command(leave).result()
        return slot_files.Saved(len(found.tokens), found.nbytes)

    async def erase_slot(self, slot: int) -> int:
        """Forget the prompt that last ran in a slot, and its pages where no other request uses them; its number of tokens."""
        self._check_slot(slot)
        return await self.between_steps(lambda: self.cache.forget(slot))

    async def between_steps(self, action: Callable[[], T]) -> T:
        """Run something in the loop's thread, between two steps. NotRunning when there is no loop."""
        return await self.loop.between_steps(action)

    def _check(self, request: GenerationRequest) -> None:
        if not request.prompt:
            raise UserError("the prompt is empty: give at least one token")
        most = self.limits.context - min(1, request.max_tokens)
        if len(request.prompt) > most:
            raise PromptTooLong(len(request.prompt), most)
        if min(request.prompt) < 0 or max(request.prompt) >= self.vocabulary:
            raise UserError(f"the prompt has a token id outside of the vocabulary of {self.vocabulary:,}")
        if request.max_tokens < 0:
            raise UserError(f"max_tokens {request.max_tokens}: it must be 0 or more")
        if request.slot is not None:
            self._check_slot(request.slot)

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.limits.slots:
            raise UserError(f"slot {slot}: this server has the slots 0 to {self.limits.slots - 1}")

    def _check_files(self, slot: int) -> None:
        self._check_slot(slot)
        if not self.cache.shares:
            raise UserError(f"slots can't be saved or restored here: {self.cache.runner.batching}, no shared pages")


def _end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that end the model's text: the generation config's, the model config's, the tokenizer's."""
    text_config: Any = loaded.model.config.get_text_config(decoder=True)
    found: set[int] = set()
    for source in (getattr(loaded.model, "generation_config", None), text_config, loaded.tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    return frozenset(int(id_) for id_ in found if 0 <= int(id_) < int(text_config.vocab_size))
