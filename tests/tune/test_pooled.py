"""What types say about each other takes most of the noise away, and nothing that is there."""

from __future__ import annotations

import numpy as np

from stratakv.tune.pooled import pooled

RNG = np.random.default_rng(0)
ERRORS = RNG.uniform(0.5, 2.0, (16, 2, 6)) * 4.0 ** -np.arange(6)
TRUTH = RNG.lognormal(0, 1, (16, 2, 1)) * RNG.uniform(0.8, 1.2, (1, 2, 6)) * ERRORS


def test_factors_come_back_exactly() -> None:
    np.testing.assert_allclose(pooled(TRUTH, ERRORS, [0] * 6), TRUTH)


def test_most_of_the_noise_goes() -> None:
    noisy = TRUTH * RNG.lognormal(0, 0.3, TRUTH.shape)
    off = [np.abs(np.log(each / TRUTH)).mean() for each in (pooled(noisy, ERRORS, [0] * 6), noisy)]
    assert off[0] < 0.6 * off[1]


def test_kinds_know_nothing_of_each_other() -> None:
    noisy = TRUTH * RNG.lognormal(0, 0.3, TRUTH.shape)
    apart = pooled(noisy, ERRORS, ["a", "a", "b", "b", "b", "c"])
    np.testing.assert_allclose(apart[..., :2], pooled(noisy[..., :2], ERRORS[..., :2], [0, 0]))
    np.testing.assert_allclose(apart[..., 5], noisy[..., 5])


def test_no_damage_stays_none_and_so_does_a_type_without_errors() -> None:
    damage, errors = TRUTH.copy(), ERRORS.copy()
    damage[3], damage[..., 5], errors[..., 5] = 0.0, 0.0, 0.0
    found = pooled(damage, errors, [0] * 6)
    assert (found[3] == 0).all() and (found[..., 5] == 0).all()
    np.testing.assert_allclose(found, damage)
