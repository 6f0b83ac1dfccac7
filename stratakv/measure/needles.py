"""Needles: keys and values planted in a text, all asked for at its end.

A context is filler from the user's text with NEEDLES sentences "The secret number of Alice is 4817." at depths of 10, 20, ...
90 %, and the same sentences again at its end, in another order, one question after the other. Two more sentences, at 5 and 95 %,
are asked first and not scored: they show what is asked. One forward pass answers all questions, since each is read with the
right answers to those before it. That gives greedy text too: it is the value exactly where each token of the value is the most
likely one after those before it.

The values' first digits differ, so the first token that tells them apart says which planted value the model would choose.
A model *can* do it when an f16 cache has at least CAN of the needles right; of others nothing is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Text, tokens_of
from stratakv.measure.divergence import Floats
from stratakv.measure.forward import context_logits
from stratakv.profile import Profile

NEEDLES = 9
SHOTS = 2
CAN = 0.75
SENTENCE = "\nThe secret number of {key} is"
KEYS = (
    "Alice", "Robert", "Maria", "Thomas", "Helen", "George", "Sarah", "Peter", "Laura", "Simon", "Julia", "Martin", "Emma",
    "Daniel", "Anna", "David", "Clara", "Henry", "Paula", "Victor",
)  # fmt: skip
_SHOT_DEPTHS = (0.05, 0.95)


@dataclass(frozen=True)
class Question:
    """One needle of a context, asked for.

    depth: in percent of the filler. at: position of the value's first token behind the question. value: its tokens. others:
    of all planted values of the context, this one first, the token that tells them apart, the `differs`-th of each.
    """

    key: str
    number: int
    depth: int
    at: int
    value: tuple[int, ...]
    others: tuple[int, ...]
    differs: int


@dataclass(frozen=True)
class Haystack:
    """One context: ids int64 [context], and its questions by depth."""

    ids: torch.Tensor
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Retrieved:
    """What one profile answered, [needles] each, by context and depth.

    right: greedy text is the value. nll: -log p(value), nats. margin: log p of its telling token minus the best of the other
    planted values', nats. allocated: bytes of the cache after a context.
    """

    right: npt.NDArray[np.bool_]
    nll: Floats
    margin: Floats
    allocated: int
    seconds: float


def plant(
    text: Text, tokenizer: Any, context: int, count: int, *, seed: int = 0, model_context: int = 0
) -> tuple[list[Haystack], list[str]]:
    """(the first `count` contexts of exactly `context` tokens, fewer where the text has no more; warnings).

    Keys, values and the order of questions are drawn by `seed`; no token of the text is used twice. model_context: the length
    the model was trained for, 0 when unknown. Raises UserError for numbers that can't be, a context that would be half needles,
    and a text too short for one.
    """
    if count < 1:
        raise UserError(f"--chunks {count}: at least 1 context")
    if 0 < model_context < context:
        raise UserError(f"-c {context}: the model's context is {model_context}, give at most that")
    bos, plain = tokens_of(text, tokenizer)
    rng = np.random.default_rng(seed)
    found: list[Haystack] = []
    used = 0
    while len(found) < count:
        made, taken = _haystack(rng, tokenizer, bos, plain[used:], context)
        if made is None:
            break
        found.append(made)
        used += taken
    if not found:
        raise UserError(
            f"the text {text.name} has {len(plain)} tokens, needles in {context} need more: give a longer text or a smaller -c"
        )
    short = f"{count} contexts were asked for, {text.name} has filler for {len(found)} of {context:,} tokens"
    return found, [short] if len(found) < count else []


def _haystack(
    rng: np.random.Generator, tokenizer: Any, bos: list[int], filler: list[int], context: int
) -> tuple[Haystack | None, int]:
    """One context and the filler it takes; None where the filler doesn't suffice."""

    def tokens(words: str) -> list[int]:
        ids: list[int] = tokenizer(words, add_special_tokens=False, verbose=False).input_ids
        return ids

    keys = [str(key) for key in rng.permutation(KEYS)[: NEEDLES + SHOTS]]
    leading = [*rng.permutation(np.arange(1, 10))[:NEEDLES], *rng.integers(1, 10, SHOTS)]
    numbers = [
        1000 * int(first) + int(rest) for first, rest in zip(leading, rng.integers(0, 1000, len(keys)), strict=True)
    ]
    order = [*range(NEEDLES, NEEDLES + SHOTS), *(int(i) for i in rng.permutation(NEEDLES))]
    depths = [(i + 1) / (NEEDLES + 1) for i in range(NEEDLES)] + list(_SHOT_DEPTHS)
    asked = [tokens(SENTENCE.format(key=key)) for key in keys]
    values = [tokens(f" {number}") for number in numbers]
    end = tokens(".\n")
    sentences = [question + value + end for question, value in zip(asked, values, strict=True)]
    room = context - len(bos) - 2 * sum(map(len, sentences))
    if room < context // 2:
        raise UserError(
            f"-c {context}: {NEEDLES + SHOTS} needles and their questions take {context - room} tokens: give at least "
            f"{2 * (context - room)}"
        )
    if room > len(filler):
        return None, 0
    ids, before = list(bos), 0
    for index in sorted(range(len(keys)), key=depths.__getitem__):
        ids += filler[before : (at := int(depths[index] * room))] + sentences[index]
        before = at
    ids += filler[before:room]
    differs = _common(values[:NEEDLES])
    telling = [value[differs] for value in values[:NEEDLES]]
    questions = []
    for index in order:
        at = len(ids) + len(asked[index])
        ids += sentences[index]
        if index < NEEDLES:
            others = (telling[index], *(each for other, each in enumerate(telling) if other != index))
            depth = round(100 * depths[index])
            questions.append(Question(keys[index], numbers[index], depth, at, tuple(values[index]), others, differs))
    questions.sort(key=lambda question: question.depth)
    return Haystack(torch.tensor(ids, dtype=torch.int64), tuple(questions)), room


def _common(values: Sequence[Sequence[int]]) -> int:
    """Tokens that all values begin with, such as a space."""
    first, *rest = values
    length = 0
    while len(first) > length + 1 and all(len(value) > length + 1 and value[length] == first[length] for value in rest):
        length += 1
    return length


def ask(
    loaded: LoadedModel,
    profile: Profile,
    haystacks: Sequence[Haystack],
    *,
    batch: int,
    progress: Callable[[], None] = lambda: None,
) -> Retrieved:
    """Every question of every context, one forward pass each. batch: tokens a forward call. progress: called after each.

    Raises UserError when the model's predictions are not finite.
    """
    started = time.perf_counter()
    right, nll, margin, allocated = [], [], [], 0
    for number, each in enumerate(haystacks):
        first = min(question.at for question in each.questions) - 1
        logits, allocated = context_logits(loaded, profile, each.ids, batch, first)
        if not bool(logits.isfinite().all()):
            raise UserError(f"profile {profile.name}, context {number}: predictions are not finite")
        for question in each.questions:
            at = question.at - 1 - first
            rows = logits[at : at + len(question.value)].double().log_softmax(-1).cpu()
            value = torch.tensor(question.value)
            right.append(bool((rows.argmax(-1) == value).all()))
            nll.append(-float(rows.gather(1, value[:, None]).sum()))
            own, *others = rows[question.differs, list(question.others)].tolist()
            margin.append(own - max(others))
        progress()
    return Retrieved(np.array(right), np.array(nll), np.array(margin), allocated, time.perf_counter() - started)
