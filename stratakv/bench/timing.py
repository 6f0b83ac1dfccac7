"""Timing that survives a busy clock: cases take turns, medians are compared, caches rotate past the last-level cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

ROTATE_BYTES = 256 * 2**20
# Threads of another library spin for some milliseconds after its work and would share the cores with what comes next
_SETTLE_SECONDS = 0.02
_CALLS_A_VISIT = 3
_LONG_CALL_SECONDS = 0.5
QUIET_LOAD = 1.0

Case = Callable[[int], float]
"""One call of what is measured: takes the number of the turn (it chooses the cache), returns seconds."""


def timed(run: Callable[[int], object]) -> Case:
    """A case from a function that doesn't measure itself."""

    def case(turn: int) -> float:
        started = time.perf_counter()
        run(turn)
        return time.perf_counter() - started

    return case


def interleaved(cases: Mapping[str, Case], *, seconds: float, least: int = 3, most: int = 40) -> dict[str, list[float]]:
    """Seconds of each case's calls. The cases take turns, A B C A B C ..., so that a clock that wanders meets all of them.

    A visit runs a case until 20 ms have passed, unmeasured, then measures 3 calls; of a call longer than half a second only
    that one. Rounds go on for `seconds` in all, at least `least` and at most `most` of them.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    turns = dict.fromkeys(cases, 0)
    started, rounds = time.monotonic(), 0
    while rounds < least or (rounds < most and time.monotonic() - started < seconds):
        for name, case in cases.items():
            turns[name] = _visit(case, turns[name], found[name])
        rounds += 1
    return found


def _visit(case: Case, turn: int, into: list[float]) -> int:
    began = time.monotonic()
    while True:
        last = case(turn)
        turn += 1
        if last > _LONG_CALL_SECONDS:
            into.append(last)
            return turn
        if time.monotonic() - began >= _SETTLE_SECONDS:
            break
    for _ in range(_CALLS_A_VISIT):
        into.append(case(turn))
        turn += 1
    return turn


def copies(nbytes: int, rotate_bytes: int) -> int:
    """How many caches of nbytes to rotate over, so that together they have rotate_bytes or more."""
    return max(1, -(-rotate_bytes // nbytes))


def reader(nbytes: int = ROTATE_BYTES) -> Case:
    """A case that reads nbytes once, front to back, with torch's threads (a float32 sum): what memory gives at best."""
    data = torch.ones(nbytes // 4)
    return timed(lambda turn: data.sum())


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of calls, in milliseconds."""
    ordered = sorted(1e3 * value for value in seconds)
    last = len(ordered) - 1
    return {
        "ms": median(ordered),
        "ms_quartiles": [ordered[round(last / 4)], ordered[round(3 * last / 4)]],
        "calls": len(ordered),
    }


def load_average() -> float | None:
    """Jobs that ran during the last minute, None where the system doesn't tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def load_warnings(load: float | None) -> list[str]:
    """What to say when other jobs share the machine."""
    if load is None or load < QUIET_LOAD:
        return []
    return [f"other jobs keep the machine busy (load average {load:.1f}): don't quote these times"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with this many threads of torch, and of the kernels, which take torch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
