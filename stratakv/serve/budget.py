"""How many tokens of prompts a step may compute beside the sequences that wait for their next token."""

from __future__ import annotations

# A step with prompt tokens may take this much longer than one without. Clients see more than the step: with 0.8 their gaps were
# 2.2 times as long beside a prompt of 4k tokens as without it
_STRETCH = 0.5
_FIRST_BUDGET = 8
_WEIGHT = 0.2  # of a new measurement in the running mean
_FASTEST_CHANGE = 2.0  # one slow step, which another program may have caused, doesn't stop prompts


class PrefillBudget:
    """Finds, step by step, how many tokens of prompts fit, so that tokens of running requests come nearly as steadily as without.

    A step's time has a part that is not by token (the history is read once for all of them) and grows with the context, so no
    price of a token is learned: the number itself is moved towards the time allowed. Where more sequences wait with their prompts
    than decode, prompts get as much more: else a crowd that comes at once starts one after the other. chunk: tokens when nothing
    else runs, and at most.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._idle: dict[int, float] = {}  # decoding sequences -> seconds of a step without prompts
        self._fitting = float(min(_FIRST_BUDGET, chunk))

    def tokens(self, decoding: int, prompts: int = 1) -> int:
        """Tokens of prompts for the next step beside so many decoding sequences; prompts: sequences with prompts to compute."""
        return min(int(self._fitting * _crowd(decoding, prompts)), self.chunk) if decoding else self.chunk

    def learn(self, decoding: int, prefill: int, seconds: float, prompts: int = 1) -> None:
        """A step took so long."""
        if not decoding:
            return
        if not prefill:
            old = self._idle.get(decoding, seconds)
            self._idle[decoding] = old + _WEIGHT * (seconds - old)
            return
        idle = self._idle_seconds(decoding)
        if idle is None:
            return
        crowd = _crowd(decoding, prompts)
        change = crowd * _STRETCH * idle / max(seconds - idle, 1e-9)
        change = min(max(change, 1 / _FASTEST_CHANGE), _FASTEST_CHANGE)
        full = prefill >= self.tokens(decoding, prompts)
        if full or change < 1:  # fewer tokens than allowed say nothing about more
            moved = (self._fitting if full else prefill / crowd) * change**0.5
            self._fitting = min(max(moved, 1.0), float(self.chunk))

    def _idle_seconds(self, decoding: int) -> float | None:
        """Measured with this number of sequences, or with the nearest one."""
        if not self._idle:
            return None
        return self._idle[min(self._idle, key=lambda known: abs(known - decoding))]


def _crowd(decoding: int, prompts: int) -> float:
    return max(1.0, prompts / decoding)
