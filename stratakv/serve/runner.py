"""Running the model on a step's work: all sequences in one forward call, or, where a model can't, one call each."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel
from stratakv.engine.positions import forget_text, grows_with_text, rope_border
from stratakv.kernels.choice import order_of
from stratakv.kernels.spans import Cut, Seen, due, two_steps
from stratakv.kernels.status import Status
from stratakv.kernels.step import Step
from stratakv.pages.footprint import Part
from stratakv.pages.layout import PAGE_TOKENS, layout_of
from stratakv.pages.pool import Pool
from stratakv.profile import Profile
from stratakv.serve.groups import WindowGroup
from stratakv.serve.scheduler import Work
from stratakv.serve.sequence import Sequence
from stratakv.serve.step_cache import StepLayer, step_cache
from stratakv.weights.modules import PackedLinear
from stratakv.weights.packed import KeptResults

Outcome = torch.Tensor | Exception | None
"""Of one piece of work: float32 logits [vocabulary] where it draws a token, [count, vocabulary] of all its tokens where it scores
them, what went wrong, or nothing."""


class Runner(Protocol):
    """Computes a step."""

    batching: str

    def run(self, work: list[Work]) -> list[Outcome]:
        """Compute the work; one outcome each, in order, good until the next call. A failure of one sequence is its own."""

    def forget(self, sequence: Sequence) -> None:
        """A sequence has left, or given its pages back."""


class BatchedRunner:
    """All sequences of a step in one forward call over shared pages.

    pools: of each group, in the order of its layers. The tokens of all sequences lie in one row of a batch, positions given, no
    mask: what a token sees is said by block tables.
    """

    batching = "one forward call for all sequences of a step"

    def __init__(self, loaded: LoadedModel, profile: Profile, groups: list[WindowGroup], capacities: list[int]) -> None:
        self.model, self.groups = loaded.model, groups
        self.device = self.model.device
        self.pools = [
            [
                Pool.fixed(
                    layout_of(layer, group.storage(profile, ordinal), order_of(self.device)), capacity, self.device
                )
                for ordinal, layer in group.layers
            ]
            for group, capacity in zip(groups, capacities, strict=True)
        ]
        self._status = Status()
        written, sealed = self._pools("whole", "fine"), self._pools("sealed")
        kv_layers = list(enumerate(loaded.geometry.kv_layers))
        for ordinal, layer in kv_layers:
            own, to = written[ordinal].layout, sealed.get(ordinal, written[ordinal]).layout
            self._status.add(f"layer {layer.layer}", (own.k, own.v), (to.k, to.v))
        of = partial(self._status.of, device=self.device)
        self._by_ordinal = [
            StepLayer(written[ordinal], of(ordinal), sealed.get(ordinal), of(ordinal, part="sealed"))
            for ordinal, _ in kv_layers
        ]
        self._cache = step_cache(
            [None if layer.ordinal is None else self._by_ordinal[layer.ordinal] for layer in loaded.geometry.layers]
        )
        self._mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)  # 4-dimensional: taken as it is
        head = self.model.get_output_embeddings()
        self._kept: AbstractContextManager[None] = (
            KeptResults(head.product) if isinstance(head, PackedLinear) else nullcontext()
        )
        self._keeps_logits = _keeps_logits(self.model)
        self._rope_border = rope_border(self.model.config)

    def run(self, work: list[Work]) -> list[Outcome]:
        """See Runner. When the step fails, each sequence is tried alone, to find whose fault it is.

        Sequences that RoPE turns by other frequencies get a call of their own: a call has those of its longest one.
        """
        border = self._rope_border
        if border is None or len({item.start + item.count > border for item in work}) < 2:
            return self._tried(work)
        found: dict[int, Outcome] = {}
        for beyond in (False, True):
            some = [item for item in work if (item.start + item.count > border) is beyond]
            found |= {id(item): _copied(outcome) for item, outcome in zip(some, self._tried(some), strict=True)}
        return [found[id(item)] for item in work]

    def _tried(self, work: list[Work]) -> list[Outcome]:
        try:
            return self._forward(work)
        except Exception as error:
            if len(work) == 1:
                return [error]
            return [_copied(outcome) for item in work for outcome in self._tried([item])]

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept beside the pages."""

    @torch.inference_mode()
    def _forward(self, work: list[Work]) -> list[Outcome]:
        rows = [(item.sequence, item.start + i) for item in work if not item.prefill for i in range(item.count)]
        chunks = [item for item in work if item.prefill]
        tokens = [sequence.tokens[position] for sequence, position in rows]
        positions = [position for _, position in rows]
        for item in chunks:
            tokens += item.sequence.tokens[item.start : item.start + item.count]
            positions += range(item.start, item.start + item.count)
        later: list[tuple[StepLayer, list[tuple[int, int]]]] = []
        for index, group in enumerate(self.groups):
            if group.part == "sealed":
                later += self._seal(index, work)
                seen = _mixed_step(group, index, rows, chunks)
            elif group.part == "whole":
                seen = Seen(None, _group_step(group, index, rows, chunks), None)
            for ordinal, _ in group.layers:
                self._by_ordinal[ordinal].seen = seen
        kept: list[int] = []  # rows of the batch whose logits are wanted
        wanted: dict[int, slice | int] = {}
        end = 0
        for item in (*(item for item in work if not item.prefill), *chunks):
            end += item.count
            if item.scores:
                wanted[id(item)] = slice(len(kept), len(kept) + item.count)
                kept += range(end - item.count, end)
            elif item.draws:
                wanted[id(item)] = len(kept)
                kept.append(end - 1)
        try:
            logits = self._logits(tokens, positions, torch.tensor(kept, dtype=torch.long, device=self.device))
            for layer, pages in later:
                layer.seal(pages)
        finally:  # whatever else the model says of states that couldn't be stored
            self._status.check()
        return [logits[wanted[id(item)]] if id(item) in wanted else None for item in work]

    def _pools(self, *parts: Part) -> dict[int, Pool]:
        """Of such groups, by KV ordinal."""
        return {
            ordinal: pool
            for group, pools in zip(self.groups, self.pools, strict=True)
            if group.part in parts
            for (ordinal, _), pool in zip(group.layers, pools, strict=True)
        }

    def _seal(self, index: int, work: list[Work]) -> list[tuple[StepLayer, list[tuple[int, int]]]]:
        """Seal what is due with the step and was full before it. What it fills itself is left to the layers, where its own
        queries see it sealed, or for after it: what is returned.

        index: of the group with the sealed pages; the one with the fine ones follows.
        """
        group, starts = self.groups[index], {id(item.sequence): item.start for item in reversed(work)}
        ends = {id(item.sequence): item.start + item.count for item in work}  # of all its pieces
        later = []
        for number, (ordinal, _) in enumerate(group.layers):
            layer, turn = self._by_ordinal[ordinal], (number + 1) / len(group.layers)
            now: list[tuple[int, int]] = []
            after: list[tuple[int, int]] = []
            layer.within = []
            for item in work:
                stop, tables = item.start + item.count, item.sequence.tables
                block = (ends[id(item.sequence)] - 1) // PAGE_TOKENS
                for page in range(due(group.spans, item.start, turn), due(group.spans, stop, turn)):
                    sealed, fine = tables[index].pages.get(page), tables[index + 1].pages.get(page)
                    if sealed is None or fine is None:  # out of a window
                        continue
                    if page < starts[id(item.sequence)] // PAGE_TOKENS:
                        now.append((fine, sealed))
                    elif page < block - group.spans.recent:
                        layer.within.append((fine, sealed))
                    else:
                        after.append((fine, sealed))
            layer.seal(now)
            if after:
                later.append((layer, after))
        return later

    def _logits(self, tokens: list[int], positions: list[int], keep: torch.Tensor) -> torch.Tensor:
        """float32 [kept, vocabulary] on the CPU."""
        # a prompt's piece that nothing is drawn from still has a last token: the head would multiply all of its tokens else
        rows = keep if len(keep) else torch.tensor([len(tokens) - 1], device=self.device)
        options: dict[str, Any] = {"logits_to_keep": rows} if self._keeps_logits else {}
        with self._kept:
            out = self.model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                attention_mask=self._mask,
                past_key_values=self._cache,
                use_cache=True,
                **options,
            ).logits[0]
        kept: torch.Tensor = out[: len(keep)] if options else out[keep]
        return kept.float().cpu()


def _keeps_logits(model: Any) -> bool:
    """Whether a model can be told for which tokens logits are wanted: the head is a large part of many a model's products."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _copied(outcome: Outcome) -> Outcome:
    return outcome.clone() if isinstance(outcome, torch.Tensor) else outcome


Run = tuple[Sequence, int, int]
"""A sequence, and of its tokens the first and how many."""


def _runs(rows: list[tuple[Sequence, int]], chunks: list[Work]) -> list[Run]:
    """Each token of `rows` is a sequence of its own, so that it is attended as when it came alone; a chunk is one with all its
    tokens."""
    return [
        *((sequence, at, 1) for sequence, at in rows),
        *((item.sequence, item.start, item.count) for item in chunks),
    ]


def _group_step(group: WindowGroup, index: int, rows: list[tuple[Sequence, int]], chunks: list[Work]) -> Step:
    """What all layers of a group share in a step."""
    runs = _runs(rows, chunks)
    tables, dropped, first = list[NDArray[np.int64]](), list[int](), list[int]()
    for sequence, start, count in runs:
        table = sequence.tables[index]
        held = next(iter(table.pages))
        origin = max(held, group.first_visible(start) // PAGE_TOKENS)  # pages before it no token of this run sees
        tables.append(table.ids[origin - held : -(-(start + count) // PAGE_TOKENS) - held])
        dropped.append(origin * PAGE_TOKENS)
        first += map(group.first_visible, range(start, start + count))
    ends, counts = [start + count for _, start, count in runs], [count for *_, count in runs]
    return Step.causal(tables, ends, counts, first=first, dropped=dropped, prefill=np.arange(len(runs)) >= len(rows))


def _mixed_step(group: WindowGroup, index: int, rows: list[tuple[Sequence, int]], chunks: list[Work]) -> Seen:
    """The same of a group of sealed pages and the one of fine pages that follows."""
    runs: list[tuple[Cut, NDArray[np.int64], NDArray[np.int64]]] = []
    for sequence, start, count in _runs(rows, chunks):
        sealed, fine = sequence.tables[index : index + 2]
        position = np.arange(start, start + count)
        first = (
            np.zeros_like(position)
            if group.window is None
            else np.array([group.first_visible(int(p)) for p in position])
        )
        cut = Cut.of(group.spans, fine.indices, sealed.indices, start, first, position + 1)
        runs.append((cut, fine.ids, sealed.ids))
    return two_steps(runs, np.arange(len(runs)) >= len(rows))


class SeparateRunner:
    """One forward call and one cache for each sequence: right for every model, no faster with many users.

    why: the model can't have more, in words. in_pieces: whether it reads a prompt in pieces as it reads the whole; where not,
    a prompt is computed with its last piece.
    """

    def __init__(self, loaded: LoadedModel, profile: Profile, why: str, *, in_pieces: bool = True) -> None:
        self.model, self.profile, self.why, self.in_pieces = loaded.model, profile, why, in_pieces
        self.device = self.model.device
        self._last_alone = {"logits_to_keep": 1} if _keeps_logits(self.model) else {}
        self._grows_with_text = grows_with_text(self.model.config)
        self.batching = f"one forward call for each sequence ({why})"

    def run(self, work: list[Work]) -> list[Outcome]:
        """See Runner."""
        outcomes: list[Outcome] = []
        for item in work:
            try:
                outcomes.append(self._forward(item))
            except Exception as error:
                item.sequence.private = None
                outcomes.append(error)
        return outcomes

    def forget(self, sequence: Sequence) -> None:
        """Its cache is freed."""
        sequence.private = None

    @torch.inference_mode()
    def _forward(self, item: Work) -> torch.Tensor | None:
        sequence, first, end = item.sequence, item.start, item.start + item.count
        if self._grows_with_text:
            forget_text(self.model)
        if item.prefill and not self.in_pieces:
            if end < sequence.prompt_tokens:
                return None
            first = 0
        if first == 0:
            sequence.private = KVCache(self.model.config, self.profile)
        step = end - first if item.prefill else 1
        logits = None
        options: dict[str, Any] = {} if item.scores else self._last_alone
        for start in range(first, end, step):
            ids = torch.tensor([sequence.tokens[start : start + step]], device=self.model.device)
            positions = torch.arange(start, start + step, device=self.model.device)[None]
            logits = self.model(
                input_ids=ids, position_ids=positions, past_key_values=sequence.private, use_cache=True, **options
            ).logits
        if logits is None or not (item.draws or item.scores):
            return None
        wanted: torch.Tensor = logits[0] if item.scores else logits[0, -1]
        return wanted.float().cpu()
