"""The last choice: candidates replace the predicted best only where their true KLD is lower beyond the noise."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import numpy as np

from stratakv.tune.verify import _best_of, halving

A, B, C, D = ((("turbo4", name),) for name in ("turbo2", "turbo3", "turbo4", "turbo5"))


def _measurer(means: dict, noise: float = 0.0):
    calls: list = []

    def klds(profiles, batches, around=None):
        calls.append((list(profiles), list(batches)))
        rows = []
        for pairs in profiles:
            common = np.random.default_rng(0).standard_normal(4 * len(batches))
            own = np.random.default_rng(zlib.crc32(repr(pairs).encode())).standard_normal(4 * len(batches))
            rows.append(means[pairs] * (1 + 0.3 * common) + noise * own)
        return np.array(rows)

    return SimpleNamespace(klds=klds, calls=calls)


def test_halving_ends_with_the_best_and_keeps_the_first() -> None:
    measurer = _measurer({A: 4.0, B: 3.0, C: 1.0, D: 2.0})
    ranked, klds = halving(measurer, [A, B, C, D, C], range(4), None)
    assert ranked[0] == C
    assert A in ranked
    assert B not in ranked
    assert klds.shape == (len(ranked), 16)
    assert [len(profiles) for profiles, _ in measurer.calls] == [4, 3, 3]


def test_a_clearly_better_candidate_is_taken() -> None:
    best, kld = _best_of(_measurer({A: 1.0, B: 0.8}, noise=0.05), [A, B], range(4), A)
    assert best == B
    assert kld.mean() < 1.0


def test_a_candidate_that_is_better_within_the_noise_is_not() -> None:
    measurer = _measurer({A: 1.0, B: 0.995}, noise=0.2)
    best, _ = _best_of(measurer, [A, B], range(2), A)
    assert best == A
