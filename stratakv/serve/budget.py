"""How many tokens of prompts a step may compute beside the sequences that wait for their next token."""

from __future__ import annotations

# Seconds of prompts for each second of decoding: tokens of running requests come half as fast as without prompts, or faster
_SHARE = 1.0
# A step with prompt tokens may take so much longer than one without. It pays once for reading a prompt's history, whatever its
# tokens (13 ms after 2,048 tokens of SmolLM2 in turbo4), so that steps with a token each made a prompt of 4,000 last 18 s
_PIECE_SECONDS = 0.03
_PIECE_STEPS = 0.5  # or so much of a step without, where that is more
_FIRST_BUDGET = 16
_WEIGHT = 0.2  # of a new measurement in the running mean
_FASTEST_CHANGE = 2.0  # one slow step, which another program may have caused, doesn't stop prompts
_LONGEST_DEBT = 4  # pieces
_STALE = 32  # steps after which one without prompts is measured again


class PrefillBudget:
    """Shares time between prompts and sequences that decode, in pieces too short for a reader to see.

    A step with prompts is followed by as many without as make up for it. Its tokens are moved, step by step, towards the number
    that takes the time of a piece: what a token costs grows with the context. Where more sequences wait with their prompts than
    decode, prompts get as much more time: else a crowd that comes at once starts one after the other. chunk: tokens when nothing
    else runs, and at most.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._idle: dict[int, float] = {}  # decoding sequences -> seconds of a step without prompts
        self._fitting = float(min(_FIRST_BUDGET, chunk))
        self._debt = 0.0  # seconds that belong to decoding before prompts come again
        self._mixed = 0  # steps with prompts since the last one without

    def tokens(self, decoding: int, prompts: int = 1) -> int:
        """Tokens of prompts for the next step beside so many decoding sequences; prompts: sequences with prompts to compute."""
        if not decoding:
            return self.chunk
        if self._debt > 0 or self._mixed >= _STALE or self._idle_seconds(decoding) is None:
            return 0
        return int(self._fitting)

    def learn(self, decoding: int, prefill: int, seconds: float, prompts: int = 1) -> None:
        """A step took so long."""
        if not decoding:
            return
        if not prefill:
            old = self._idle.get(decoding, seconds)
            self._idle[decoding] = old + _WEIGHT * (seconds - old)
            self._debt = max(0.0, self._debt - seconds)
            self._mixed = 0
            return
        idle = self._idle_seconds(decoding)
        if idle is None:
            return
        self._mixed += 1
        extra = max(seconds - idle, 1e-9)
        allowed = max(_PIECE_SECONDS, _PIECE_STEPS * idle)
        share = _SHARE * max(1.0, prompts / decoding)
        self._debt = max(0.0, self._debt + min(extra, _LONGEST_DEBT * allowed) / share - idle)
        change = min(max(allowed / extra, 1 / _FASTEST_CHANGE), _FASTEST_CHANGE)
        full = prefill >= int(self._fitting)
        if full or change < 1:  # fewer tokens than allowed say nothing about more
            self._fitting = min(max((self._fitting if full else prefill) * change**0.5, 1.0), float(self.chunk))

    def _idle_seconds(self, decoding: int) -> float | None:
        """Measured with this number of sequences, or with one that is near."""
        near = [known for known in self._idle if abs(known - decoding) <= decoding // 4]
        return self._idle[min(near, key=lambda known: abs(known - decoding))] if near else None
