from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from stratakv.measure.intervals import change_interval, mean_interval, standard_error

TRIALS = 400
# A simulated coverage of 0.925 has a standard error of 0.013 in 400 trials: three of them on either side
TOLERANCE = 0.04
blocks = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=4, max_size=20)


@pytest.mark.parametrize(("n", "sigma", "expected"), [(16, 0.3, 0.94), (16, 0.6, 0.925), (4, 0.3, 0.925)])
def test_mean_interval_covers_the_mean_of_skewed_data(n: int, sigma: float, expected: float) -> None:
    rng = np.random.default_rng(7)
    mean = np.exp(sigma**2 / 2)
    inside = 0
    for trial in range(TRIALS):
        low, high = mean_interval(rng.lognormal(0, sigma, n), seed=trial, resamples=499)
        inside += low <= mean <= high
    assert abs(inside / TRIALS - expected) < TOLERANCE


def test_bootstrap_covers_very_skewed_data_better_than_students_t() -> None:
    rng = np.random.default_rng(8)
    mean, ours, students = np.exp(0.5), 0, 0
    for trial in range(TRIALS):
        x = rng.lognormal(0, 1.0, 16)
        low, high = mean_interval(x, seed=trial, resamples=499)
        ours += low <= mean <= high
        students += abs(x.mean() - mean) <= t.ppf(0.975, 15) * standard_error(x)
    assert ours >= students + 0.02 * TRIALS


def test_change_interval_covers_the_change_between_paired_data() -> None:
    rng = np.random.default_rng(9)
    inside = 0
    for trial in range(TRIALS):
        hard = rng.lognormal(0, 0.6, 16)
        low, high = change_interval(0.7 * hard * rng.lognormal(-0.02, 0.2, 16), hard, seed=trial, resamples=499)
        inside += low <= -0.3 <= high
    assert abs(inside / TRIALS - 0.94) < TOLERANCE


def test_pairing_cancels_what_makes_a_block_hard() -> None:
    rng = np.random.default_rng(10)
    hard = rng.lognormal(0, 1.0, 16)
    slightly_worse = 1.05 * hard * rng.lognormal(0, 0.02, 16)
    low, high = change_interval(slightly_worse, hard)
    assert 0.02 < low < 0.05 < high < 0.08
    own = mean_interval(slightly_worse)
    assert own[0] < hard.mean() < own[1], "unpaired, the difference drowns"


def test_four_to_seven_blocks_take_students_t() -> None:
    x = np.array([1.0, 2.0, 4.0, 3.0])
    half = t.ppf(0.975, 3) * x.std(ddof=1) / 2
    assert mean_interval(x) == pytest.approx((2.5 - half, 2.5 + half))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_blocks_have_no_interval(n: int) -> None:
    assert mean_interval(np.arange(1.0, n + 1)) is None
    assert change_interval(np.arange(1.0, n + 1), np.ones(n)) is None


@pytest.mark.parametrize("n", [4, 16])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_equal_blocks_give_a_point(n: int, value: float) -> None:
    assert mean_interval([value] * n) == (value, value)


@pytest.mark.parametrize("n", [4, 16])
def test_proportional_blocks_give_a_point(n: int) -> None:
    y = np.random.default_rng(0).lognormal(0, 1, n)
    assert change_interval(y, y) == (0.0, 0.0)
    low, high = change_interval(0.3 * y, y)
    assert low == high == pytest.approx(-0.7)
    assert change_interval(np.zeros(n), y) == (-1.0, -1.0)


@pytest.mark.parametrize("n", [8, 16])
def test_one_deviating_block_takes_students_t(n: int) -> None:
    """Without that block a resample has no spread, so the bootstrap knows nothing of the error above."""
    x = np.array([0.0] * (n - 1) + [1.0])
    half = t.ppf(0.975, n - 1) * standard_error(x)
    assert mean_interval(x) == pytest.approx((1 / n - half, 1 / n + half))


@given(blocks)
def test_interval_is_repeatable_and_moves_with_the_data(x: list[float]) -> None:
    first = mean_interval(x, resamples=199)
    assert first == mean_interval(x, resamples=199)
    moved = mean_interval([2 * value for value in x], resamples=199)
    assert moved == pytest.approx((2 * first[0], 2 * first[1]))
    mirrored = mean_interval([-value for value in x], resamples=199)
    assert mirrored[0] <= -sum(x) / len(x) + 1e-9
    assert first[0] <= sum(x) / len(x) + 1e-9


@pytest.mark.parametrize(
    "bad", [[1.0, 2.0, float("nan"), 3.0], [[1.0, 2.0], [3.0, 4.0]], [1.0, float("inf"), 2.0, 3.0]]
)
def test_what_is_not_finite_or_flat_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(bad)


def test_a_reference_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        change_interval([1.0] * 4, [0.0] * 4)


def test_standard_error() -> None:
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)


def test_no_change_is_said_to_be_more_than_all() -> None:
    """Few blocks that hardly agree: the linearised ratio's interval would reach to -132 %."""
    interval = change_interval([0.1, 0.2, 3.0, 0.1], [1.0, 3.0, 0.5, 2.0])
    assert interval is not None
    assert interval[0] == -1.0 and interval[1] > 0
