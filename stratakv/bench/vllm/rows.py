"""What visits of `stratakv bench vllm` come to: medians, ratios to stock vLLM of the same turn, goals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from stratakv.bench.goals import goal

STOCK, FP8 = "stock", "stock fp8"
_FAR = 8192  # tokens from which on a profile is to be faster

Row = dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """Requests that were asked for at once. tokens: of each answer. seconds: to the end of all. first: seconds to each one's
    first token. together: how many were in the cache at once with their whole prompts."""

    tokens: int
    seconds: float
    first: Sequence[float]
    together: int

    @property
    def tokens_per_second(self) -> float:
        """Of the answers, in all the time that they took."""
        return len(self.first) * self.tokens / self.seconds

    @property
    def decoded_per_second(self) -> float:
        """Of one request, after its first token."""
        (first,) = self.first
        return (self.tokens - 1) / (self.seconds - first)


@dataclass
class Visits:
    """Of one engine. contexts: by tokens, the first visit of each with the prompt to compute."""

    requests: list[Answered] = field(default_factory=list)
    contexts: dict[int, list[Answered]] = field(default_factory=dict)
    long: Answered | None = None


def row(cache: str, started: Row, visits: Visits, stock: Visits) -> Row:
    """An engine's. Ratios are medians over turns, of each turn's value by stock vLLM's in the same turn."""
    speeds = [each.tokens_per_second for each in visits.requests]
    ratios = [mine / each.tokens_per_second for mine, each in zip(speeds, stock.requests, strict=True)]
    return {
        "cache": cache,
        "ours": cache not in (STOCK, FP8),
        "blocks": started["blocks"],
        "tokens_that_fit": started["blocks"] * started["block_tokens"],
        "tokens_per_second": median(speeds),
        "tokens_per_second_rounds": speeds,
        "times_stock": median(ratios),
        "ttft_ms": 1e3 * median(first for each in visits.requests for first in each.first),
        "contexts": [_context(tokens, each, stock.contexts[tokens]) for tokens, each in visits.contexts.items()],
        "long": visits.long.together if visits.long else None,
        "long_asked": len(visits.long.first) if visits.long else None,
    }


def _context(tokens: int, visits: Sequence[Answered], stock: Sequence[Answered]) -> Row:
    speeds = [each.decoded_per_second for each in visits[1:]]
    ratios = [mine / each.decoded_per_second for mine, each in zip(speeds, stock[1:], strict=True)]
    return {
        "tokens": tokens,
        "ttft_ms": 1e3 * visits[0].first[0],
        "ttft_times_stock": visits[0].first[0] / stock[0].first[0],
        "tokens_per_second": median(speeds),
        "tokens_per_second_rounds": speeds,
        "times_stock": median(ratios),
    }


def goals(rows: Sequence[Row]) -> list[Row]:
    """For every profile, as `bench.goals.goal` gives them."""
    stock = next(row for row in rows if row["cache"] == STOCK)
    found = []
    for each in (row for row in rows if row["ours"]):
        name = each["cache"]
        words = f"{name}: requests at once"
        found.append(goal(words, "at least", 1.0, each["times_stock"], "times stock vLLM's throughput"))
        if each["long"] is not None:
            times = each["long"] / stock["long"]
            words = f"{name}: sequences of 4k tokens in the same memory"
            found.append(goal(words, "at least", 3.0, times, "times stock vLLM's"))
        for context in each["contexts"]:
            if context["tokens"] >= _FAR:
                words = f"{name}: decoding at {context['tokens']:,} tokens"
                found.append(goal(words, "at least", 1.0, context["times_stock"], "times stock vLLM's speed"))
    return found
