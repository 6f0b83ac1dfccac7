"""A budget that nothing fits is one line that says what to do; the best uniform pair; what the next size is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stratakv.errors import UserError
from stratakv.profile import LayerGeometry, ModelGeometry, Spans
from stratakv.tune.problem import Problem

GEOMETRY = ModelGeometry("made-up", tuple(LayerGeometry(i, i, "full", (128, 128), 2, 4) for i in range(4)))
TYPES = ("turbo2", "turbo3", "turbo4", "turbo5", "q8_0")
TURBO4 = 4 * 2 * (66 + 66)  # bytes a token
K = {"turbo2": 8.0, "turbo3": 4.0, "turbo4": 1.0, "turbo5": 0.2, "q8_0": 0.01}
V = {"turbo2": 4.0, "turbo3": 1.0, "turbo4": 0.5, "turbo5": 0.3, "q8_0": 0.1}
DAMAGES = [{(k, v): K[k] + V[v] for k in TYPES for v in TYPES}] * 4


def test_the_best_uniform_pair_may_have_two_types() -> None:
    problem = Problem(GEOMETRY, TURBO4, types=TYPES)
    assert problem.uniform(DAMAGES) == ("turbo5", "turbo3")
    assert replace(problem, types=("turbo3", "turbo4")).uniform(DAMAGES) == ("turbo4", "turbo4")
    assert replace(problem, pairs={("turbo3", "turbo3"), ("q8_0", "q8_0")}).uniform(DAMAGES) == ("turbo3", "turbo3")
    assert replace(problem, budget=10).uniform(DAMAGES) is None


def test_the_next_size_that_would_help() -> None:
    problem = Problem(GEOMETRY, TURBO4 + 1, types=TYPES)
    larger = problem.next_size(DAMAGES)
    assert larger is not None and larger > TURBO4 + 1
    assert replace(problem, budget=larger).solve(DAMAGES).cost < problem.solve(DAMAGES).cost
    assert replace(problem, budget=larger - 1).solve(DAMAGES).cost == problem.solve(DAMAGES).cost
    assert replace(problem, budget=10**6).next_size(DAMAGES) is None


def test_a_budget_in_bytes_a_token_that_nothing_fits() -> None:
    least = 4 * 2 * (34 + 34)
    Problem(GEOMETRY, least, types=TYPES).check()
    with pytest.raises(
        UserError, match=rf"budget of {least - 1:,} bytes a token is below the {least:,} that the smallest"
    ):
        Problem(GEOMETRY, least - 1, types=TYPES).check()
    with pytest.raises(UserError, match="is below the"):
        Problem(GEOMETRY, least, types=TYPES, floors={2: ("turbo3", "turbo2")}).check()


def test_a_memory_that_nothing_fits_says_how_much_would_and_what_length() -> None:
    least = 64 * 128 * 4 * 2 * (34 + 34)
    problem = Problem(GEOMETRY, least - 1, 64 * 128, TYPES)
    with pytest.raises(
        UserError, match=r"at 8,192 tokens: the smallest allowed types take 4.25 MiB: .*at most 8,064 tokens"
    ):
        problem.check()
    replace(problem, budget=least).check()
    replace(problem, context=8064).check()
    with pytest.raises(UserError, match="give that or more, or allow smaller types"):
        replace(problem, budget=100).check()


def test_spans_that_eat_the_budget_are_named() -> None:
    problem = Problem(GEOMETRY, 5 * 2**20, 64 * 128, TYPES)
    problem.check()
    with pytest.raises(
        UserError, match="the spans 'recent: 4 pages turbo8' eat the budget of 5.00 MiB at 8,192 tokens"
    ) as error:
        replace(problem, spans=Spans(4)).check()
    needed = replace(problem, spans=Spans(4)).size((("turbo2", "turbo2"),) * 4)
    assert f"take {needed / 2**20:.2f} MiB with them, 4.25 MiB without" in str(error.value)
    replace(problem, spans=Spans(4), budget=needed).check()


def test_what_is_allowed_is_within_the_budget_and_above_the_floors() -> None:
    problem = Problem(GEOMETRY, TURBO4, types=TYPES, floors={2: ("turbo5", "turbo2")})
    turbo4, mixed = (
        [("turbo4", "turbo4")] * 4,
        [("turbo4", "turbo4")] * 2 + [("turbo5", "turbo3"), ("turbo4", "turbo4")],
    )
    assert problem.allows(mixed, DAMAGES)
    assert not problem.allows(turbo4, DAMAGES), "K of layer 2 is below its floor"
    assert not replace(problem, budget=TURBO4 - 1).allows(mixed, DAMAGES)
