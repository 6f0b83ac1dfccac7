"""DRY ("don't repeat yourself"): a token that would go on with a repetition costs more the longer the repetition is.

Texts that break a sequence (line ends, quotes, names) end a repetition, however tokens cut them: a breaker is found where a token
holds it, or where a token ends with its beginning and the tokens after it go on with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Breakers = Mapping[int, tuple[tuple[int, ...], ...]]
"""A token that breaks sequences, and the tokens that must follow for it; () where it does so by itself."""

LONGEST = 1024  # tokens of a repetition: longer ones cost as much
_MAX_EXPONENT = math.log(float(np.finfo(np.float32).max))
_TAIL = 20  # tokens of a breaker, at most


def penalties(
    tokens: Sequence[int], breakers: Breakers, *, multiplier: float, base: float, allowed: int
) -> dict[int, float]:
    """What is taken from a token's logit: multiplier * base ** (length of the repetition it would go on with - allowed).

    tokens: that are looked at, the last one just drawn. allowed: length that costs nothing less than the multiplier.
    """
    here = np.asarray(tokens, dtype=np.int64)
    count = len(here)
    longest = min(_since_breaker(tokens, breakers), LONGEST)
    if count <= allowed or longest < allowed:
        return {}
    ends = np.flatnonzero(here[:-1] == here[-1])  # where an earlier repetition ends; the token after it would go on
    lengths = np.zeros(count, dtype=np.int64)
    alive, length = ends, 0
    while len(alive) and length < longest:
        length += 1
        lengths[alive] = length
        alive = alive[alive >= length]
        alive = alive[here[alive - length] == here[count - 1 - length]] if length < count else alive[:0]
    found: dict[int, int] = {}
    for end in (ends if allowed else np.arange(count - 1)).tolist():
        if lengths[end] >= allowed:
            token = int(here[end + 1])
            found[token] = max(found.get(token, 0), int(lengths[end]))
    most = int(_MAX_EXPONENT / math.log(base)) if base > 1.000001 else LONGEST
    return {
        token: multiplier * base ** min(length - allowed, most)
        for token, length in found.items()
        if () not in breakers.get(token, ())
    }


def _since_breaker(tokens: Sequence[int], breakers: Breakers) -> int:
    """Tokens since the last breaker, itself not counted; all where there is none."""
    for back in range(len(tokens)):
        tails = breakers.get(tokens[-1 - back])
        if tails is None:
            continue
        after = tuple(tokens[len(tokens) - back :])
        fitting = [len(tail) for tail in tails if tail == after[: len(tail)]]
        if fitting:
            return back - max(fitting)
    return len(tokens)


@lru_cache(maxsize=16)
def find_breakers(tokenizer: Any, texts: tuple[str, ...]) -> Breakers:
    """All tokens of a vocabulary that break sequences by one of these texts, or begin to."""
    found: dict[int, set[tuple[int, ...]]] = {}
    tails: dict[str, tuple[int, ...]] = {}
    for token, word in enumerate(_vocabulary(tokenizer)):
        for text in texts:
            if text in word:
                found.setdefault(token, set()).add(())
                continue
            for kept in range(min(len(text) - 1, len(word)), 0, -1):
                if word.endswith(text[:kept]):
                    rest = text[kept:]
                    if rest not in tails:
                        tails[rest] = tuple(_encode(tokenizer, rest)[:_TAIL])
                    found.setdefault(token, set()).add(tails[rest])
    return {token: tuple(sorted(several)) for token, several in found.items()}


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any) -> list[str]:
    """The text of each token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return list(backend.decode_batch([[id_] for id_ in range(len(tokenizer))], skip_special_tokens=False))
    return [tokenizer.decode([id_]) for id_ in range(len(tokenizer))]


def _encode(tokenizer: Any, text: str) -> list[int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return list(backend.encode(text, add_special_tokens=False).ids)
    return list(tokenizer.encode(text, add_special_tokens=False))
