"""Far predictions: what a model can only know from a passage that it read a thousand tokens ago and more.

Most of what decides the next token of a text stands in the last few hundred ones. A cache that keeps those finely, and damages
or loses all others, looks nearly perfect on it. So a second measurement scores what needs the others. A far context is

    [BOS] passage | the text that follows it | the passage again
          1/4                 1/2                    1/4

and only the copy is scored, from its token WARM_UP on: before that nothing tells the model where in the first copy it is
(SmolLM2-135M, 2,048 tokens, nats a token: 4.4 for the first 8 tokens of the copy, 0.9 for those up to 24, 0.2 from there on; 3.3
when the passage is first read). Each scored token stands `distance` tokens after its first copy, which no window reaches.
Contexts are cut from the text's beginning and share no token. Nothing is random.

A model that doesn't copy has no far predictions: its copy is ordinary text at the end of a long context. `copying` says so
before anything is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Contexts, Text, tokens_of
from stratakv.measure.run import BASELINE, measure
from stratakv.profile import resolve

CONTEXTS = 4  # the fewest that give an interval
DISTANCE = 1000
USUAL = 2048
SHORTEST = 512
WARM_UP = 32
COPYING = 0.5
COPYING_PASSES = 1.25  # of a far context, that `copying` takes


@dataclass(frozen=True, kw_only=True)
class FarContexts(Contexts):
    """Contexts that end with their own beginning.

    passage: tokens that are repeated. distance: tokens from each of them to its copy.
    """

    passage: int
    distance: int

    @property
    def first_reading(self) -> Contexts:
        """The first context up to the end of its passage, where the same tokens as in the copy are scored."""
        end = self.context - self.distance
        return Contexts(self.text, self.ids[:1, :end], self.tokens, start=self.first - self.distance)


@dataclass(frozen=True)
class NoFar:
    """Why there are no far predictions, a sentence for the user."""

    words: str
    warnings: tuple[str, ...] = ()


NOT_ASKED = NoFar("no far predictions: --far 0")


def check_far(count: int, size: int | None, model_context: int = 0) -> None:
    """UserError for a number of contexts, or of tokens of one, that can't be. model_context: 0 when unknown."""
    if count < 0:
        raise UserError(f"--far {count}: at least 0 contexts, 0 for no far predictions")
    if size is not None and size < SHORTEST:
        raise UserError(f"--far-ctx-size {size}: a far context needs at least {SHORTEST} tokens")
    if size is not None and 0 < model_context < size:
        raise UserError(f"--far-ctx-size {size}: the model's context is {model_context}, give at most that")


def far_contexts(
    text: Text, tokenizer: Any, count: int, size: int | None = None, *, context: int = 0, model_context: int = 0
) -> FarContexts | NoFar:
    """The first `count` far contexts of a text, fewer where it has no more.

    size: tokens of one; None: 2,048, or `context` where that is longer, within the model's. context: of the ordinary
    measurement. model_context: the length the model was trained for, 0 when unknown. Raises UserError for what `check_far`
    refuses.
    """
    check_far(count, size, model_context)
    if count == 0:
        return NOT_ASKED
    if size is None:
        size = max(USUAL, context)
        size = min(size, model_context) if model_context else size
        if size < SHORTEST:
            return NoFar(f"no far predictions: they need {SHORTEST} tokens, the model's context has {model_context}")
    bos, plain = tokens_of(text, tokenizer)
    passage = size // 4
    fresh = size - len(bos) - passage
    there = min(count, len(plain) // fresh)
    if there == 0:
        return NoFar(
            f"no far predictions: a far context of {size:,} tokens takes {fresh:,} of the text, {text.name} has {len(plain):,}"
        )
    new = torch.tensor(plain[: there * fresh], dtype=torch.int64).reshape(there, fresh)
    before = torch.tensor(bos, dtype=torch.int64).expand(there, -1)
    warnings = []
    if there < count:
        warnings.append(f"{count} far contexts were asked for, {text.name} has {there} of {size:,} tokens")
    if fresh < DISTANCE:
        warnings.append(
            f"far means {fresh:,} tokens back here, not {DISTANCE:,}: a far context has {size:,} tokens"
            + (", the model's whole context" if size == model_context else "")
        )
    return FarContexts(
        text,
        torch.cat([before, new, new[:, :passage]], dim=1),
        len(bos) + len(plain),
        tuple(warnings),
        start=size - passage + WARM_UP - 1,
        passage=passage,
        distance=fresh,
    )


@dataclass(frozen=True)
class Copying:
    """What the f16 cache takes for the scored tokens of the first far context, nats a token: read first, and repeated."""

    first: float
    copy: float

    @property
    def able(self) -> bool:
        """The model takes the copy from what it has read: it needs at most half of the nats."""
        return self.copy <= COPYING * self.first

    @property
    def words(self) -> str:
        """'0.21 nats a token for the copy, 3.39 when first read'."""
        return f"{self.copy:.2f} nats a token for the copy, {self.first:.2f} when first read"


def copying(loaded: LoadedModel, far: FarContexts, batch: int) -> Copying:
    """One context and its passage through an f16 cache: COPYING_PASSES."""
    profile = [resolve(BASELINE, loaded.geometry)]
    nll = [
        float(measure(loaded, part, profile, batch=batch, against=False)[0].nll.mean())
        for part in (far.first_reading, replace(far, ids=far.ids[:1]))
    ]
    return Copying(*nll)


def measurable(loaded: LoadedModel, far: FarContexts | NoFar, batch: int) -> tuple[FarContexts | None, dict[str, Any]]:
    """(the contexts to measure, None where there is nothing to measure; the field "far" of a result)."""
    if isinstance(far, NoFar):
        return None, {"chunks": 0, "words": far.words}
    found = copying(loaded, far, batch)
    if not found.able:
        words = (
            f"no far predictions: {loaded.name} doesn't copy, an f16 cache takes {found.words}; at most half is needed"
        )
        return None, {"chunks": 0, "words": words, "nll_first": found.first, "nll_copy": found.copy}
    there = len(far.ids)
    return far, {
        "chunks": there,
        "context": far.context,
        "passage": far.passage,
        "distance": far.distance,
        "warm_up": WARM_UP,
        "tokens_scored": there * far.scored,
        "nll_first": found.first,
        "nll_copy": found.copy,
        "words": (
            f"far: {there} contexts of {far.context:,} tokens, their first {far.passage:,} repeated at the end, "
            f"{far.distance:,} tokens on; {there * far.scored:,} predictions of the copies scored (f16: {found.words})"
        ),
    }
