from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.measure.verdicts import bytes_in_words, judge, kld_in_words, pareto_front

REFERENCE = {"bytes_per_token": 1000, "kld_mean": 0.01}


def row(
    diff: float, interval: tuple[float, float] | None, size: int = 1000, *, baseline: bool = False
) -> dict[str, Any]:
    return {"bytes_per_token": size, "kld_diff": diff, "kld_diff_ci95": interval, "baseline": baseline}


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (row(-0.0076, (-0.0079, -0.0072), 1710), "better", "better: KLD -76 % [-79, -72] at +71 % bytes"),
        (row(0.03, (0.02, 0.04), 760), "worse", "worse: KLD +300 % [+200, +400] at -24 % bytes"),
        (
            row(-0.001, (-0.003, 0.001)),
            "no difference shown",
            "no difference shown: KLD -10 % [-30, +10] at the same bytes",
        ),
        (row(0.0, (0.0, 0.0)), "no difference shown", "no difference shown: KLD +0 % [+0, +0] at the same bytes"),
        (
            row(-0.005, None, 2000),
            "undecided",
            "undecided: fewer than 4 contexts give no interval, KLD -50 % at +100 % bytes",
        ),
        (
            row(-0.01, (-0.01, -0.01), 3880, baseline=True),
            "baseline",
            "baseline: KLD is measured against it, at +288 % bytes",
        ),
    ],
)
def test_verdicts(given: dict[str, Any], kind: str, text: str) -> None:
    assert judge(given, REFERENCE, is_reference=False) == (kind, text)


def test_the_reference_is_called_so() -> None:
    assert judge(row(0.0, (0.0, 0.0)), REFERENCE, is_reference=True) == ("reference", "reference")


def test_the_interval_decides_however_large_the_difference() -> None:
    assert judge(row(5.0, (-0.001, 10.0)), REFERENCE, is_reference=False)[0] == "no difference shown"
    assert judge(row(1e-9, (1e-10, 2e-9)), REFERENCE, is_reference=False)[0] == "worse"


def test_against_a_reference_without_divergence_nats_are_given() -> None:
    assert kld_in_words(0.01, (0.009, 0.011), 0.0) == "KLD +0.01 nats [+0.009, +0.011]"


def test_small_numbers_are_never_rounded_to_nothing_or_everything() -> None:
    assert kld_in_words(-0.00996, (-0.00997, -0.00995), 0.01) == "KLD -99.6 % [-99.7, -99.5]"
    assert kld_in_words(0.00002, (0.00001, 0.00003), 0.01) == "KLD +0.2 % [+0.1, +0.3]"
    assert bytes_in_words(1001, 1000) == "at +0.1 % bytes"


def test_pareto_front() -> None:
    points = [(16, 0.0), (8, 1.0), (8, 1.0), (9, 1.0), (4, 5.0), (4, 6.0), (2, 50.0), (6, 0.5)]
    assert pareto_front(points) == [True, False, False, False, True, False, True, True]
    assert pareto_front([(8, 1.0), (8, 1.0)]) == [True, True], "equals don't beat each other"


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_every_point_off_the_front_is_beaten_from_the_front(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    best = [point for point, on in zip(points, front, strict=True) if on]
    for point, on in zip(points, front, strict=True):
        beaten = any(b[0] <= point[0] and b[1] <= point[1] and b != point for b in best)
        assert beaten != on
