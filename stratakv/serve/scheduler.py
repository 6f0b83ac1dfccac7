"""Which sequences run in the next step, and how many tokens of each. Pure: no model, no clock, no threads.

Fair: requests start in the order of their arrival; prompts that are being computed share a step's prefill tokens evenly.
When pages run out, the sequence that started last gives its pages back and waits at the head of the queue: its tokens are
kept and computed again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from stratakv.errors import UserError
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.table import BlockTable
from stratakv.serve.groups import WindowGroup
from stratakv.serve.sequence import Sequence

MIN_SHARE = 16  # prefill tokens of one sequence in a step, at least
MOST_SCORED = 64  # prompt tokens of one sequence in a step whose logits are all kept, a vocabulary of floats each


@dataclass(frozen=True)
class Work:
    """Compute tokens start .. start + count of a sequence. prefill: by prefill attention, else token by token.

    draws: whether the last of them gives the next token.
    """

    sequence: Sequence
    start: int
    count: int
    prefill: bool
    draws: bool

    @property
    def scores(self) -> bool:
        """Whether the logits of all these tokens are wanted."""
        return self.prefill and self.sequence.request.score_prompt


class Scheduler:
    """Sequences that wait, sequences that run, and the pages between them.

    groups, pools: of the model's layers, in the same order. slots: sequences that run at once. chunk: prefill tokens of a
    step, at most. keep_prefixes: whether whole pages of prompts are published for later prompts. by_page: prompts are computed
    page by page, each by itself, so that no sum depends on what else a step holds.
    """

    def __init__(
        self,
        groups: list[WindowGroup],
        pools: list[PageAllocator],
        *,
        slots: int,
        chunk: int,
        keep_prefixes: bool = True,
        by_page: bool = False,
    ) -> None:
        if by_page and chunk < PAGE_TOKENS:
            raise UserError(
                f"-b/--batch-size {chunk}: with --deterministic a step takes whole pages, {PAGE_TOKENS} tokens or more"
            )
        self.groups, self.pools = groups, pools
        self.chunk, self.keep_prefixes, self.by_page = chunk, keep_prefixes, by_page
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of their start
        self.free_slots = list(range(slots))
        self.preempted = 0
        self._turn = 0

    def new_tables(self) -> list[BlockTable]:
        """Empty block tables for a sequence."""
        return [BlockTable() for _ in self.groups]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """A sequence is done, or gone: its pages and its slot are free."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def plan(self, prefill_tokens: int) -> list[Work]:
        """The next step: one token of each decoding sequence, and prompts' tokens, `prefill_tokens` at most in all.

        Pages for the planned tokens are allocated.
        """
        self._admit()
        work = []
        for sequence in list(self.running):
            ready = not sequence.in_prompt and sequence.pending == 1
            if ready and sequence in self.running and self._make_room(sequence, sequence.computed + 1):
                work.append(Work(sequence, sequence.computed, 1, False, True))
        work += self._prefill(prefill_tokens)
        return [item for item in work if item.sequence in self.running]  # one may have lost its pages to another

    def advance(self, work: list[Work]) -> None:
        """The step is computed: publish whole pages of prompts, let go of what no later token sees."""
        for item in work:
            sequence = item.sequence
            if sequence not in self.running:
                continue
            sequence.computed = item.start + item.count
            if self.keep_prefixes and sequence.request.cache_prompt:
                self._publish(sequence)
            self._drop_unseen(sequence)

    def cached_prefix(self, keys: list[bytes], tokens: int) -> int:
        """Whole pages at the beginning of a prompt of so many tokens that are there in all groups.

        The prompt's last token is always computed, for its logits.
        """
        pages = min(len(keys), (tokens - 1) // PAGE_TOKENS)
        both = list(zip(self.groups, self.pools, strict=True))
        for group, pool in both:  # what needs all pages is looked through once
            if group.window is None and group.part != "fine":
                missing = next((page for page in group.prefix(pages) if pool.lookup(keys[page]) is None), None)
                pages = pages if missing is None else group.reaches(missing)
        some = [(group, pool) for group, pool in both if group.window is not None or group.part == "fine"]
        while pages and not all(
            pool.lookup(keys[page]) is not None for group, pool in some for page in group.prefix(pages)
        ):
            pages -= 1
        return pages

    def _admit(self) -> None:
        """Start waiting sequences in their order while there are slots, and pages for their whole prompts."""
        if not self.waiting or not self.free_slots:
            return
        reserved = [0] * len(self.groups)
        for running in self.running:
            for index, table in enumerate(running.tables):
                reserved[index] += self._still_needed(index, table, running)
        while self.free_slots and (sequence := self._next_waiting()) is not None:
            self._adopt_prefix(sequence)
            needs = [self._still_needed(index, table, sequence) for index, table in enumerate(sequence.tables)]
            available = (pool.available - taken for pool, taken in zip(self.pools, reserved, strict=True))
            if self.running and any(need > left for need, left in zip(needs, available, strict=True)):
                self._drop_pages(sequence)
                return
            self.waiting.remove(sequence)
            wanted = sequence.request.slot
            sequence.slot = min(self.free_slots) if wanted is None else wanted
            self.free_slots.remove(sequence.slot)
            self.running.append(sequence)
            reserved = [taken + need for taken, need in zip(reserved, needs, strict=True)]

    def _next_waiting(self) -> Sequence | None:
        """The first that doesn't insist on a slot that is taken."""
        for sequence in self.waiting:
            if sequence.request.slot is None or sequence.request.slot in self.free_slots:
                return sequence
        return None

    def _still_needed(self, index: int, table: BlockTable, sequence: Sequence) -> int:
        """Pages that the rest of a sequence's known tokens, and the one after them if there will be one, will take; without those
        that are fine for one step of a prompt only: there are some for any step."""
        tokens = len(sequence.tokens) + min(1, sequence.request.max_tokens)
        group = self.groups[index]
        most = group.pages_for(tokens, 1 if group.part == "fine" else self.chunk) - len(table.pages)
        if group.window is not None and group.part == "whole":
            most = min(most, -(-tokens // PAGE_TOKENS) - max(table.pages, default=-1) - 1)
        return max(0, most)

    def _adopt_prefix(self, sequence: Sequence) -> None:
        """Share the pages of an earlier prompt with the same beginning."""
        if not (self.keep_prefixes and sequence.request.cache_prompt) or sequence.request.score_prompt:
            return
        pages = self.cached_prefix(sequence.keys, sequence.prompt_tokens)
        sequence.computed, sequence.published = pages * PAGE_TOKENS, pages
        if sequence.started is None:
            sequence.cached = sequence.computed
        for group, pool, table in zip(self.groups, self.pools, sequence.tables, strict=True):
            found = ((index, pool.lookup(sequence.keys[index])) for index in group.prefix(pages))
            shared = {index: page for index, page in found if page is not None}
            for page in shared.values():
                pool.share(page)
            table.adopt(shared)

    def _publish(self, sequence: Sequence) -> None:
        whole = min(sequence.computed, sequence.prompt_tokens) // PAGE_TOKENS
        for group, pool, table in zip(self.groups, self.pools, sequence.tables, strict=True):
            begin, end = (group.complete(pages * PAGE_TOKENS) for pages in (sequence.published, whole))
            for index in range(begin, end):
                page = table.pages.get(index)
                if page is not None:
                    pool.publish(page, sequence.keys[index])
        sequence.published = max(sequence.published, whole)

    def _drop_unseen(self, sequence: Sequence) -> None:
        """Give back what no later token sees. Of fine pages the prompt's last ones, and those that an earlier prompt left, are
        kept before others: prompts go on from there."""
        end = sequence.prompt_tokens // PAGE_TOKENS
        for group, pool, table in zip(self.groups, self.pools, sequence.tables, strict=True):
            if group.window is None and group.part != "fine":
                continue

            def soon(index: int, group: WindowGroup = group, table: BlockTable = table) -> bool:
                return group.part == "fine" and index < end - group.spans.recent and index not in table.borrowed

            table.drop(pool, lambda index, group=group: group.keeps(index, sequence.computed), soon)  # type: ignore[misc]

    def _prefill(self, budget: int) -> list[Work]:
        pending = [s for s in self.running if s.in_prompt or s.pending > 1]
        if not pending:
            return []
        self._turn += 1
        start = self._turn % len(pending)
        work: list[Work] = []
        queue = pending[start:] + pending[:start]
        for index, sequence in enumerate(queue):
            if budget <= 0:
                break
            if sequence not in self.running:
                continue
            end = sequence.prompt_tokens if sequence.in_prompt else len(sequence.tokens)
            share = max(MIN_SHARE, budget // (len(queue) - index))
            count = min(end - sequence.computed, share, budget, self._same_chunks(sequence.computed))
            if sequence.request.score_prompt:
                count = min(count, MOST_SCORED)
            pieces = self._pieces(sequence.computed, count, end)
            stop = pieces[-1][1]
            if self._make_room(sequence, stop):
                known = len(sequence.tokens)
                work += [Work(sequence, at, to - at, sequence.in_prompt, to == known) for at, to in pieces]
                budget -= stop - sequence.computed
        return work

    def _pieces(self, start: int, count: int, end: int) -> list[tuple[int, int]]:
        """Tokens start .. start + count, cut where pages and chunks of attention end if they are computed by page: then whole
        pieces only, so that it may be more, but then it is one."""
        if not self.by_page:
            return [(start, start + count)]
        pieces: list[tuple[int, int]] = []
        at = start
        while at < end:
            to = min(end, at + PAGE_TOKENS - at % PAGE_TOKENS, at + self._same_chunks(at))
            if pieces and to > start + count:
                break
            pieces.append((at, to))
            at = to
        return pieces

    def _same_chunks(self, position: int) -> int:
        """Tokens from here on that may be computed together: in layers of chunked attention those that see the same beginning."""
        borders = [border for group in self.groups if (border := group.next_border(position)) is not None]
        return min(borders, default=position + self.chunk) - position

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Pages for so many tokens; sequences that started later give theirs back if need be. False: this one did."""
        for group, pool, table in zip(self.groups, self.pools, sequence.tables, strict=True):
            while not table.hold(pool, group.needs(sequence.computed, tokens)):
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_back(sequence)
        self.waiting.appendleft(sequence)
        self.preempted += 1

    def _give_back(self, sequence: Sequence) -> None:
        self._drop_pages(sequence)
        if sequence.slot is not None:
            self.free_slots.append(sequence.slot)
            sequence.slot = None

    def _drop_pages(self, sequence: Sequence) -> None:
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            table.release(pool)
        sequence.computed = sequence.published = 0
        sequence.private = None
