"""What the rounds of `stratakv bench serve` come to: medians, and the rounds beside them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stratakv.bench.serve.load import Load


@dataclass
class Round:
    """One round on one server. closed: by clients; new, seen: seconds to the first token with a long beginning; alone, beside:
    seconds between tokens of a running request, without and with a long prompt beside it."""

    closed: dict[int, Load]
    opened: Load | None
    rate: float
    new: float
    seen: float
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)


def loop_rows(visits: Sequence[Round]) -> Iterator[dict[str, Any]]:
    """A row for each number of clients, and one for the open loop: times of all rounds together, throughput of each."""
    for clients in visits[0].closed:
        yield {"loop": "closed", "clients": clients, "rate": None, **_row([v.closed[clients] for v in visits])}
    opened = [visit.opened for visit in visits if visit.opened is not None]
    if opened:
        yield {"loop": "open", "clients": None, "rate": visits[0].rate, **_row(opened)}


def prefix_row(visits: Sequence[Round]) -> dict[str, Any]:
    """Medians over rounds in milliseconds; gaps of all rounds together, None where they were not measured."""
    new, seen = [1e3 * visit.new for visit in visits], [1e3 * visit.seen for visit in visits]
    alone = [1e3 * gap for visit in visits for gap in visit.alone]
    beside = [1e3 * gap for visit in visits for gap in visit.beside]
    both = bool(alone and beside)
    return {
        "ttft_new_ms": statistics.median(new),
        "ttft_new_ms_rounds": new,
        "ttft_seen_ms": statistics.median(seen),
        "ttft_seen_ms_rounds": seen,
        "times": statistics.median(new) / statistics.median(seen),
        **_percentiles("gap_alone_ms", alone),
        **_percentiles("gap_beside_ms", beside),
        "gap_times": statistics.median(beside) / statistics.median(alone) if both else None,
    }


def _row(loads: Sequence[Load]) -> dict[str, Any]:
    answers = [answer for load in loads for answer in load.answers]
    speeds = [load.tokens_per_second for load in loads]
    return {
        "requests": len(answers),
        "tokens": sum(answer.tokens for answer in answers),
        "tokens_per_second": statistics.median(speeds),
        "tokens_per_second_rounds": speeds,
        **_percentiles("ttft_ms", [1e3 * answer.first for answer in answers if answer.pieces]),
        **_percentiles("gap_ms", [1e3 * gap for answer in answers for gap in answer.gaps]),
    }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_p{p}": float(np.percentile(values, p)) if len(values) else None for p in (50, 99)}
