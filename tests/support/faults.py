"""Planted faults: what a measurement has to find."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stratakv.measure.forward import Pass, Reading, context_logits

KEPT = 128


class ForgetfulReading(Reading):
    """A reading with a cache that keeps the last 128 to 255 tokens and forgets all others; f16's forgets nothing."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        if all(pair == ("f16", "f16") for pair in self._profile.pairs):
            yield from super().__iter__()
            return
        last = len(self._ids) - 1
        parts = []
        for at in range(self._first, last, KEPT):
            begin = max(0, at - KEPT)
            ids = self._ids[begin : min(at + KEPT, last) + 1]
            parts.append(context_logits(self._loaded, self._profile, ids, self._batch, at - begin).logits)
        self.allocated = self._profile.bytes_at(len(self._ids))
        borders = [at for at in range(0, last, self._batch) if at > self._first]
        yield from torch.cat(parts).tensor_split([at - self._first for at in borders])


def forgetful_logits(*words: object) -> Pass:
    """`context_logits` by a ForgetfulReading."""
    reading = ForgetfulReading(*words)  # type: ignore[arg-type]
    return Pass(torch.cat(list(reading)), reading.allocated)
