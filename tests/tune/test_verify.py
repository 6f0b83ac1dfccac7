"""The last choice: candidates replace the predicted best only where their true KLD is lower beyond the noise."""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from stratakv.profile import LayerGeometry, ModelGeometry
from stratakv.tune.damage import Terms
from stratakv.tune.problem import Problem
from stratakv.tune.verify import _best_of, halving, search

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


def test_an_operating_point_below_a_floor_is_not_taken_however_good_it_is() -> None:
    types = ("turbo2", "turbo4", "q8_0")
    geometry = ModelGeometry("made-up", tuple(LayerGeometry(i, i, "full", (128, 128), 2, 4) for i in range(4)))
    operating = (("turbo4", "turbo4"),) * 4
    terms = Terms(types, operating, np.broadcast_to([8.0, 1.0, 0.1], (4, 2, 3)))

    def klds(profiles, batches, around=None):
        return np.array([[0.1 if pairs == operating else 0.5] * 2 for pairs in profiles])

    measurer = SimpleNamespace(klds=klds, batch=1, stage=lambda *_: nullcontext())
    effort = SimpleNamespace(search_batches=2, drawn=0, swaps=0)
    problem = Problem(geometry, 4 * 2 * 132, types=types)
    assert search(measurer, problem, terms, 8.0, [], effort).pairs == operating
    floored = Problem(geometry, 4 * 2 * 132, types=types, floors={0: ("q8_0", "q8_0")})
    assert search(measurer, floored, terms, 8.0, [], effort).pairs[0] == ("q8_0", "q8_0")
