"""How many tokens of prompts a step may compute beside the sequences that wait for their next token."""

from __future__ import annotations

# A step with prompt tokens may take this much longer than one without
_STRETCH = 0.6
_FIRST_BUDGET = 32
_WEIGHT = 0.2  # of a new measurement in the running means


class PrefillBudget:
    """Learns what a step costs, so that tokens of running requests come nearly as steadily as without prompts beside them.

    chunk: tokens when nothing else runs, and at most. smallest: at least.
    """

    def __init__(self, chunk: int, smallest: int = 16) -> None:
        self.chunk, self.smallest = chunk, min(smallest, chunk)
        self._idle: dict[int, float] = {}  # decoding sequences -> seconds of a step without prompts
        self._seconds_a_token: float | None = None

    def tokens(self, decoding: int) -> int:
        """Tokens of prompts for the next step beside so many decoding sequences."""
        if not decoding:
            return self.chunk
        idle = self._idle_seconds(decoding)
        if idle is None or self._seconds_a_token is None:
            return min(_FIRST_BUDGET, self.chunk)
        fitting = int(_STRETCH * idle / max(self._seconds_a_token, 1e-9))
        return max(self.smallest, min(self.chunk, fitting))

    def learn(self, decoding: int, prefill: int, seconds: float) -> None:
        """A step took so long."""
        if not prefill:
            if decoding:
                self._idle[decoding] = _mean(self._idle.get(decoding), seconds)
            return
        idle = self._idle_seconds(decoding) if decoding else 0.0
        if idle is not None:
            self._seconds_a_token = _mean(self._seconds_a_token, max(seconds - idle, 0.0) / prefill)

    def _idle_seconds(self, decoding: int) -> float | None:
        """Measured with this number of sequences, or with the nearest one."""
        if not self._idle:
            return None
        return self._idle[min(self._idle, key=lambda known: abs(known - decoding))]


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
