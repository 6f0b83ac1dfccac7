"""The engine: requests in, pieces of text out, one thread that runs the model for all of them."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile
from stratakv.serve import slot_files
from stratakv.serve.answer import Answer
from stratakv.serve.budget import PrefillBudget
from stratakv.serve.choose_runner import choose_runner
from stratakv.serve.grammar import Grammars
from stratakv.serve.groups import capacities, window_groups
from stratakv.serve.losses import losses
from stratakv.serve.request import (
    EngineSnapshot,
    GenerationRequest,
    Limits,
    NotRunning,
    PromptTooLong,
    QueueFull,
)
from stratakv.serve.runner import BatchedRunner, Outcome
from stratakv.serve.scheduler import Scheduler, Work
from stratakv.serve.sequence import Sequence, page_keys
from stratakv.serve.snapshot import Speed, take_snapshot
from stratakv.serve.text import TextStream
from stratakv.serve.ticket import Ticket

T = TypeVar("T")


class Engine:
    """Serves many requests over one packed cache.

    Made and started once; `submit` and the slots' methods are called from event loops, `snapshot` from anywhere. UserError
    where the cache is too small for one request of `limits.context` tokens.
    """

    def __init__(self, loaded: LoadedModel, profile: Profile, limits: Limits) -> None:
        self.loaded, self.profile, self.limits = loaded, profile, limits
        self.groups = window_groups(profile)
        pages = capacities(self.groups, limits.cache_bytes, limits.slots, limits.context, limits.prefill_chunk)
        for group, capacity in zip(self.groups, pages, strict=True):
            needed = group.pages_for(limits.context, limits.prefill_chunk)
            if capacity < needed:
                raise UserError(
                    f"{limits.cache_bytes:,} bytes of cache hold {capacity * PAGE_TOKENS:,} tokens, one request of "
                    f"{limits.context:,} tokens needs {needed} pages of {group.page_bytes:,} bytes: give more memory, a "
                    "smaller context, or a profile with fewer bytes a token"
                )
        self.pools = [PageAllocator(capacity) for capacity in pages]
        self.runner = choose_runner(loaded, profile, self.groups, pages)
        batched = isinstance(self.runner, BatchedRunner)
        self.scheduler = Scheduler(
            self.groups,
            self.pools,
            slots=limits.slots,
            chunk=limits.prefill_chunk,
            keep_prefixes=limits.prefix_cache and batched,
            by_page=limits.deterministic,
        )
        text_config: Any = loaded.model.config.get_text_config(decoder=True)
        self.vocabulary = int(text_config.vocab_size)
        self.end_tokens = _end_tokens(loaded)
        self.grammars = Grammars(loaded.tokenizer, self.vocabulary, self.end_tokens)
        self.lost = losses(self.runner, self.groups, profile.pairs, self.grammars)
        self.salt = f"{loaded.fingerprint}\n{profile.pairs}".encode()
        self.token_text = lru_cache(maxsize=2**14)(lambda id_: str(loaded.tokenizer.decode([id_])))
        self.answers: dict[int, Answer] = {}
        self.slot_keys: list[tuple[tuple[int, ...], list[bytes]]] = [((), []) for _ in range(limits.slots)]
        self.counters: Counter[str] = Counter()
        self.speed = Speed()
        self.budget = PrefillBudget(limits.prefill_chunk)
        self.failure: str | None = None
        self._ids = itertools.count()
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._accepting = self._ending = False
        self._request_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="stratakv-engine", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the loop runs."""
        return self.failure is None and self._thread.is_alive()

    def start(self) -> None:
        """Start the model's loop."""
        self._accepting = True
        self._thread.start()

    async def stop(self, grace: float = 0.0) -> None:
        """Accept nothing more, let what runs finish within `grace` seconds, cancel the rest, end the loop."""
        self._accepting = False
        deadline = time.perf_counter() + grace
        while self.answers and self.failure is None and time.perf_counter() < deadline:
            await asyncio.sleep(0.02)
        with self._wake:
            self._ending = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queue a request. Raises QueueFull, PromptTooLong, NotRunning, or UserError for what can't be meant."""
        self._check(request)
        if not self._accepting or self.failure is not None:
            raise NotRunning(self.failure or "the engine is stopping")
        matcher = self.grammars.matcher(request.grammar) if request.grammar is not None else None
        keys = page_keys(request.prompt, self.salt) if self.scheduler.keep_prefixes else []
        with self._wake:
            waiting, free = len(self.scheduler.waiting), len(self.scheduler.free_slots)
            if waiting >= self.limits.queue + free:
                self.counters["refused"] += 1
                raise QueueFull(max(1.0, self._request_seconds * (1 + waiting / self.limits.slots)))
            sequence = Sequence(next(self._ids), request, list(request.prompt), keys, self.scheduler.new_tables())
            ticket = Ticket(sequence.id, lambda: self._cancel(sequence))
            self.answers[sequence.id] = Answer(
                sequence,
                ticket,
                TextStream(self.loaded.tokenizer, request.stop, request.shown),
                matcher,
                limit=min(request.max_tokens, self.limits.context - len(request.prompt)),
                end_tokens=self.end_tokens,
                token_text=self.token_text,
            )
            self.scheduler.add(sequence)
            self.counters["requests"] += 1
            self._wake.notify()
        return ticket

    def snapshot(self) -> EngineSnapshot:
        """How the engine stands, as plain data."""
        with self._wake:
            return take_snapshot(self)

    async def save_slot(self, slot: int, path: str | Path) -> slot_files.Saved:
        """Write the whole pages of the prompt that last ran in a slot; UserError where there is nothing to write.

        The file appears in one step, or not at all.
        """
        self._check_slot(slot)
        return await slot_files.save(self, slot, Path(path))

    async def restore_slot(self, slot: int, path: str | Path) -> slot_files.Saved:
        """Read a slot's pages back, for prompts that begin with its tokens; UserError for a file that doesn't fit, or damaged."""
        self._check_slot(slot)
        return await slot_files.restore(self, slot, Path(path))

    async def erase_slot(self, slot: int) -> int:
        """Forget the prompt that last ran in a slot, and its pages where no other request uses them; its number of tokens."""
        self._check_slot(slot)

        def erase() -> int:
            tokens, keys = self.slot_keys[slot]
            for pool in self.pools:
                for key in keys:
                    pool.discard(key)
            self.slot_keys[slot] = ((), [])
            return len(tokens)

        return await self.between_steps(erase)

    async def between_steps(self, action: Callable[[], T]) -> T:
        """Run something in the loop's thread, between two steps. NotRunning when there is no loop."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = action()
            except Exception as error:
                loop.call_soon_threadsafe(_settle, done, None, error)
            else:
                loop.call_soon_threadsafe(_settle, done, result, None)

        with self._wake:
            if self._ending or self.failure is not None or not self._thread.is_alive():
                raise NotRunning(self.failure or "the engine is stopping")
            self._commands.append(run)
            self._wake.notify()
        return await done

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

    def _cancel(self, sequence: Sequence) -> None:
        with self._wake:
            sequence.cancelled = True
            self._wake.notify()

    # the loop's thread

    def _run(self) -> None:
        try:
            while self._step():
                pass
            self._end_all("cancelled", None)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            self._end_all("error", f"the model's loop failed: {self.failure}")
            raise

    def _step(self) -> bool:
        """One step of everything that runs; False when the engine ends."""
        begin = time.perf_counter()
        with self._wake:
            while self._commands:
                self._commands.popleft()()
            self._drop_cancelled()
            if self._ending:
                return False
            decoding = sum(not s.in_prompt and s.pending == 1 for s in self.scheduler.running)
            prompts = len(self.scheduler.running) - decoding
            prompts += min(len(self.scheduler.waiting), len(self.scheduler.free_slots))
            work = self.scheduler.plan(self.budget.tokens(decoding, prompts))
            if not work:
                self._deliver()
                self._wake.wait(timeout=0.5)
                return True
            now = time.perf_counter()
            for item in work:
                sequence = item.sequence
                if sequence.started is None:
                    sequence.started = now
                    self.answers[sequence.id].ticket.slot = sequence.slot
        outcomes = self.runner.run(work)
        self._check_outcomes(outcomes)
        self._draw(work, outcomes)
        with self._wake:
            self.scheduler.advance(work)
            self._end_finished(work)
        prefill = sum(item.count for item in work if item.prefill)
        drawn = sum(item.draws for item in work)
        self.speed.add(drawn)
        self.counters["steps"] += 1
        self.counters["prompt_tokens"] += prefill
        self.counters["generated_tokens"] += drawn
        self._deliver()  # whoever gets the last token finds it counted
        seconds = time.perf_counter() - begin
        self.budget.learn(len(work) - sum(item.prefill for item in work), prefill, seconds, prompts)
        return True

    def _check_outcomes(self, outcomes: list[Outcome]) -> None:
        """When nothing could be computed, and not for what a sequence contains, the engine is broken."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if errors and len(errors) == len(outcomes) and not any(isinstance(error, ValueError) for error in errors):
            raise errors[0]

    def _draw(self, work: list[Work], outcomes: list[Outcome]) -> None:
        for item, outcome in zip(work, outcomes, strict=True):
            answer = self.answers[item.sequence.id]
            if isinstance(outcome, Exception):
                answer.finish("error", str(outcome))
            elif outcome is not None:
                if not np.isfinite(outcome.numpy().max()):
                    answer.finish("error", "the model's logits are inf or nan")
                    continue
                if item.scores:
                    answer.score(item.start + item.count, outcome)
                    outcome = outcome[-1]
                if not item.draws:
                    continue
                try:
                    answer.draw(outcome)
                except ValueError as error:  # a grammar that has failed, or left no token
                    answer.finish("error", str(error), impossible=True)

    def _end_finished(self, work: list[Work]) -> None:
        for item in work:
            sequence = item.sequence
            answer = self.answers.get(sequence.id)
            if answer is None or answer.finished is None:
                continue
            if sequence.slot is not None:
                self.slot_keys[sequence.slot] = (sequence.request.prompt, sequence.keys[: sequence.published])
            self.scheduler.remove(sequence)
            self.runner.forget(sequence)
            finish = answer.finished
            self.counters["failed" if finish.reason == "error" else "finished"] += 1
            self.counters["cached_tokens"] += finish.cached_tokens
            self.counters["prompt_ms"] += int(finish.prompt_ms)
            self.counters["decode_ms"] += int(finish.decode_ms)
            self._request_seconds += 0.1 * ((finish.prompt_ms + finish.decode_ms) / 1e3 - self._request_seconds)

    def _drop_cancelled(self) -> None:
        for answer in list(self.answers.values()):
            if answer.sequence.cancelled and answer.finished is None:
                self.scheduler.remove(answer.sequence)
                self.runner.forget(answer.sequence)
                answer.finish("cancelled")
                self.counters["cancelled"] += 1

    def _end_all(self, reason: Any, error: str | None) -> None:
        with self._wake:
            self._accepting = False
            for answer in list(self.answers.values()):
                self.scheduler.remove(answer.sequence)
                self.runner.forget(answer.sequence)
                answer.finish(reason, error)
            while self._commands:
                self._commands.popleft()()
        self._deliver()

    def _deliver(self) -> None:
        """Hand over what is new, each loop's tickets in one call."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, list[Any]]]] = {}
        for answer in list(self.answers.values()):
            if answer.items:
                items, answer.items = answer.items, []
                batches.setdefault(answer.ticket.loop, []).append((answer.ticket, items))
                by_loop.setdefault(answer.ticket.loop, []).append(answer)
            if answer.finished is not None:
                self.answers.pop(answer.sequence.id, None)
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the loop is closed: nobody listens any more
                for answer in by_loop[loop]:
                    answer.sequence.cancelled = True


def _put_all(batch: list[tuple[Ticket, list[Any]]]) -> None:
    for ticket, items in batch:
        for item in items:
            ticket.put(item)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that end the model's text: the generation config's, the model config's, the tokenizer's."""
    text_config: Any = loaded.model.config.get_text_config(decoder=True)
    found: set[int] = set()
    for source in (getattr(loaded.model, "generation_config", None), text_config, loaded.tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    return frozenset(int(id_) for id_ in found if 0 <= int(id_) < int(text_config.vocab_size))
