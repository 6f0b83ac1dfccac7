"""Far predictions in the objective: when they count, how much, and that a mixture is one."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.errors import UserError
from stratakv.profile.spans import NONE, Spans
from stratakv.tune.far import USUAL, mixed, weight_of
from stratakv.tune.sensitivity import Sensitivity


@pytest.mark.parametrize(
    ("given", "long", "measures", "expected"),
    [
        (None, True, False, USUAL),
        (None, False, False, 0.0),
        (None, True, True, 0.0),
        (0.0, True, False, 0.0),
        (1.0, False, False, 1.0),
        (0.0, False, True, 0.0),
    ],
)
def test_when_they_count(given: float | None, long: bool, measures: bool, expected: float) -> None:
    assert weight_of(given, long=long, measures=measures) == expected


@pytest.mark.parametrize(("given", "measures"), [(-0.1, False), (1.1, False), (float("nan"), False), (0.5, True)])
def test_weights_that_cannot_be(given: float, measures: bool) -> None:
    with pytest.raises(UserError, match=f"--far {given:g}"):
        weight_of(given, long=True, measures=measures)


def test_a_mixture_keeps_each_context_and_adds_the_far_mean() -> None:
    def drawn(seed: int, contexts: int) -> dict[Spans, Sensitivity]:
        rng = np.random.default_rng(seed)
        operating = (("turbo4", "turbo4"),) * 3
        return {
            spans: Sensitivity(("turbo3", "turbo4"), operating, rng.random((contexts, 3, 2, 2)))
            for spans in (NONE, Spans(1))
        }

    near, far = drawn(0, 2), drawn(1, 3)
    found = mixed(near, far, 0.25)
    for spans in (NONE, Spans(1)):
        expected = 0.75 * near[spans].damage + 0.25 * far[spans].damage.mean(axis=0)
        np.testing.assert_allclose(found[spans].damage, expected)
    assert all((mixed(near, far, 0.0)[spans].damage == near[spans].damage).all() for spans in near)
