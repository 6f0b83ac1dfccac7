"""The chunk budget against simulated step times: it settles below twice the idle step, and follows what changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stratakv.serve.budget import PrefillBudget


def run(budget: PrefillBudget, seconds: Callable[[int], float], idle: float, steps: int) -> list[int]:
    """The tokens of each step, of which one with n tokens takes seconds(n)."""
    for _ in range(5):
        budget.learn(1, 0, idle)
    found = []
    for _ in range(steps):
        tokens = budget.tokens(1)
        found.append(tokens)
        budget.learn(1, tokens, seconds(tokens))
    return found


@pytest.mark.parametrize(
    ("fixed", "per_token", "idle"), [(0.0, 1e-4, 26e-3), (1e-3, 3e-4, 4e-3), (0.0, 5e-3, 26e-3), (2e-3, 1e-6, 4e-3)]
)
def test_it_settles_below_twice_the_idle_step(fixed: float, per_token: float, idle: float) -> None:
    def seconds(n: int) -> float:
        return idle + fixed + per_token * n

    budget = PrefillBudget(512)
    last = run(budget, seconds, idle, 60)[-20:]
    assert all(seconds(n) < 2 * idle for n in last)
    # and no lower than it must
    assert all(n == 512 or seconds(2 * n + 2) > 1.5 * idle for n in last)


def test_a_prompt_goes_on_where_even_one_token_takes_too_long() -> None:
    assert run(PrefillBudget(512), lambda n: 0.1, 0.01, 20)[-1] == 1


def test_it_follows_a_context_that_grows() -> None:
    budget = PrefillBudget(512)
    early = run(budget, lambda n: 10e-3 + 1e-4 * n, 10e-3, 60)[-1]
    late = run(budget, lambda n: 10e-3 + 1e-3 * n, 10e-3, 60)[-1]
    assert 40 < early < 60 and 4 <= late < 6


def test_one_slow_step_halves_it_at_most() -> None:
    budget = PrefillBudget(512)
    before = run(budget, lambda n: 10e-3 + 1e-4 * n, 10e-3, 60)[-1]
    budget.learn(1, before, 5.0)
    assert budget.tokens(1) >= before // 2


def test_alone_a_prompt_gets_whole_chunks_and_the_end_of_one_teaches_nothing() -> None:
    budget = PrefillBudget(256)
    assert budget.tokens(0) == 256
    settled = run(budget, lambda n: 10e-3 + 1e-4 * n, 10e-3, 60)[-1]
    budget.learn(1, 3, 10.3e-3)
    assert budget.tokens(1) == settled
    budget.learn(0, 256, 1.0)
    assert budget.tokens(1) == settled


def test_a_crowd_that_waits_gets_more_than_the_few_that_decode() -> None:
    budget = PrefillBudget(512)
    settled = run(budget, lambda n: 10e-3 + 1e-4 * n, 10e-3, 60)[-1]
    assert 40 < settled < 60
    assert budget.tokens(4, 4) == budget.tokens(4, 1) == settled
    assert budget.tokens(1, 3) == pytest.approx(3 * settled, abs=3) and budget.tokens(1, 100) == 512
    # and what is learned there, with the time that was allowed, holds for few
    for _ in range(20):
        tokens = budget.tokens(1, 3)
        budget.learn(1, tokens, 10e-3 + 1e-4 * tokens, 3)
    assert budget.tokens(1) == pytest.approx(settled, abs=5)
