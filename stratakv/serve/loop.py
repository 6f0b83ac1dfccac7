"""The thread that runs the model for all requests, step by step: plan, run, draw, advance, deliver."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from stratakv.serve.answer import Answer
from stratakv.serve.budget import PrefillBudget
from stratakv.serve.paged_cache import PagedCache
from stratakv.serve.request import NotRunning
from stratakv.serve.runner import Outcome
from stratakv.serve.scheduler import Scheduler, Work
from stratakv.serve.sequence import Sequence
from stratakv.serve.statistics import Statistics
from stratakv.serve.ticket import Ticket

T = TypeVar("T")


class Loop:
    """Owns the answers that are under way. What several threads touch is touched with `lock`: the scheduler, answers, commands.

    answers: by their sequence's id. failure: what ended the loop, where something did.
    """

    def __init__(self, cache: PagedCache, scheduler: Scheduler, statistics: Statistics, chunk: int) -> None:
        self.cache, self.scheduler, self.statistics = cache, scheduler, statistics
        self.budget = PrefillBudget(chunk)
        self.answers: dict[int, Answer] = {}
        self.failure: str | None = None
        self.lock = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="stratakv-engine", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether it runs."""
        return self.failure is None and self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def stop(self) -> None:
        """End after the step that is running; what is under way is cancelled."""
        with self.lock:
            self._ending = True
            self.lock.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def add(self, answer: Answer) -> None:
        """Queue an answer. Called with the lock."""
        self.answers[answer.sequence.id] = answer
        self.scheduler.add(answer.sequence)
        self.lock.notify()

    def cancel(self, sequence: Sequence) -> None:
        """Nobody wants its answer any more."""
        with self.lock:
            sequence.cancelled = True
            self.lock.notify()

    async def between_steps(self, action: Callable[[], T]) -> T:
        """Run something in the loop's thread, between two steps. NotRunning when there is no loop."""
        return await asyncio.wrap_future(self.command(action))

    def command(self, action: Callable[[], T]) -> Future[T]:
        """The same for any thread but the loop's own. What is cancelled before its turn isn't run."""
        done: Future[T] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(action())
            except Exception as error:
                done.set_exception(error)

        with self.lock:
            if self._ending or not self.healthy:
                raise NotRunning(self.failure or "the engine is stopping")
            self._commands.append(run)
            self.lock.notify()
        return done

    # in the thread

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
        """One step of everything that runs; False at the end."""
        begin = time.perf_counter()
        with self.lock:
            while self._commands:
                self._commands.popleft()()
            self._drop_cancelled()
            if self._ending:
                return False
            prompts = self._prompts()
            work = self._plan(prompts)
            if not work:
                self._deliver()
                self.lock.wait(timeout=0.5)
                return True
        outcomes = self.cache.runner.run(work)
        _check(outcomes)
        self._draw(work, outcomes)
        with self.lock:
            self.scheduler.advance(work)
            self._end_finished(work)
            prefill = sum(item.count for item in work if item.prefill)
            self.statistics.add_step(prefill, sum(item.draws for item in work))
        self._deliver()  # whoever gets the last token finds it counted
        decoding = sum(not item.prefill for item in work)
        self.budget.learn(decoding, prefill, time.perf_counter() - begin, prompts)
        return True

    def _prompts(self) -> int:
        """Sequences with prompts to compute: those that run, and those that will start now."""
        running = sum(not _decodes(sequence) for sequence in self.scheduler.running)
        return running + min(len(self.scheduler.waiting), len(self.scheduler.free_slots))

    def _plan(self, prompts: int) -> list[Work]:
        decoding = sum(_decodes(sequence) for sequence in self.scheduler.running)
        work = self.scheduler.plan(self.budget.tokens(decoding, prompts))
        now = time.perf_counter()
        for item in work:
            sequence = item.sequence
            if sequence.started is None:
                sequence.started = now
                self.answers[sequence.id].ticket.slot = sequence.slot
        return work

    def _draw(self, work: list[Work], outcomes: list[Outcome]) -> None:
        for item, outcome in zip(work, outcomes, strict=True):
            answer = self.answers[item.sequence.id]
            if answer.finished is not None:  # by an earlier piece of its prompt
                continue
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
                self.cache.slots[sequence.slot] = (sequence.request.prompt, sequence.keys[: sequence.published])
            self._leave(sequence)
            self.statistics.add_finish(answer.finished)

    def _drop_cancelled(self) -> None:
        for answer in list(self.answers.values()):
            if answer.sequence.cancelled and answer.finished is None:
                self._leave(answer.sequence)
                answer.finish("cancelled")
                self.statistics.count("cancelled")

    def _end_all(self, reason: Any, error: str | None) -> None:
        with self.lock:
            self._ending = True
            for answer in list(self.answers.values()):
                self._leave(answer.sequence)
                answer.finish(reason, error)
            while self._commands:
                self._commands.popleft()()
        self._deliver()

    def _leave(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.cache.runner.forget(sequence)

    def _deliver(self) -> None:
        """Hand over what is new, each event loop's tickets in one call."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Answer, list[Any]]]] = {}
        for answer in list(self.answers.values()):
            if answer.items:
                items, answer.items = answer.items, []
                batches.setdefault(answer.ticket.loop, []).append((answer, items))
            if answer.finished is not None:
                self.answers.pop(answer.sequence.id, None)
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_put_all, [(answer.ticket, items) for answer, items in batch])
            except RuntimeError:  # the loop is closed: nobody listens any more
                for answer, _ in batch:
                    answer.sequence.cancelled = True


def _decodes(sequence: Sequence) -> bool:
    return not sequence.in_prompt and sequence.pending == 1


def _check(outcomes: list[Outcome]) -> None:
    """When nothing could be computed, and not for what a sequence contains, the engine is broken."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors and len(errors) == len(outcomes) and not any(isinstance(error, ValueError) for error in errors):
        raise errors[0]


def _put_all(batch: list[tuple[Ticket, list[Any]]]) -> None:
    for ticket, items in batch:
        for item in items:
            ticket.put(item)
