"""What a server counts and times: since its start, and over the last seconds."""

from __future__ import annotations

import time
from collections import Counter, deque

from stratakv.serve.request import Counters, Finish

_SECONDS = 5.0


class Speed:
    """Tokens a second over the last seconds."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()

    def add(self, tokens: int) -> None:
        """So many tokens came now."""
        now = time.perf_counter()
        self._steps.append((now, tokens))
        while self._steps[0][0] < now - _SECONDS:
            self._steps.popleft()

    def now(self) -> float:
        """Tokens a second."""
        since = time.perf_counter() - _SECONDS
        recent = [(at, tokens) for at, tokens in self._steps if at >= since]
        if len(recent) < 2:
            return 0.0
        return sum(tokens for _, tokens in recent) / max(time.perf_counter() - recent[0][0], 0.1)


class Statistics:
    """Written and read with the engine's lock."""

    def __init__(self) -> None:
        self.speed = Speed()
        self.request_seconds = 1.0  # a running mean, for how long to wait before trying again
        self._counts: Counter[str] = Counter()
        self._prompt_ms = self._decode_ms = 0.0

    def count(self, what: str) -> None:
        """One more of a field of Counters."""
        self._counts[what] += 1

    def add_step(self, prompt_tokens: int, drawn: int) -> None:
        """A step computed so many tokens of prompts and drew so many."""
        self.speed.add(drawn)
        self._counts["steps"] += 1
        self._counts["prompt_tokens"] += prompt_tokens
        self._counts["generated_tokens"] += drawn

    def add_finish(self, finish: Finish) -> None:
        """An answer has ended by itself."""
        self.count("failed" if finish.reason == "error" else "finished")
        self._counts["cached_tokens"] += finish.cached_tokens
        self._prompt_ms += finish.prompt_ms
        self._decode_ms += finish.decode_ms
        self.request_seconds += 0.1 * ((finish.prompt_ms + finish.decode_ms) / 1e3 - self.request_seconds)

    def clear(self) -> None:
        """Begin anew."""
        self._counts.clear()
        self._prompt_ms = self._decode_ms = 0.0

    def counters(self, preempted: int) -> Counters:
        """As plain data. preempted: the scheduler's count."""
        return Counters(
            **self._counts,
            preempted=preempted,
            prompt_seconds=self._prompt_ms / 1e3,
            decode_seconds=self._decode_ms / 1e3,
        )
