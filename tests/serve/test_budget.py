"""The chunk budget against simulated step times: time is shared as promised, in pieces of the promised length."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stratakv.serve.budget import PrefillBudget


def run(
    budget: PrefillBudget, seconds: Callable[[int], float], steps: int, decoding: int = 1, prompts: int = 1
) -> list[tuple[int, float]]:
    """Tokens and time of each step, of which one with n tokens takes seconds(n)."""
    found = []
    for _ in range(steps):
        tokens = budget.tokens(decoding, prompts)
        budget.learn(decoding, tokens, seconds(tokens), prompts)
        found.append((tokens, seconds(tokens)))
    return found


@pytest.mark.parametrize(
    ("fixed", "per_token", "idle"),
    [
        (0.0, 1e-4, 26e-3),
        (1e-3, 3e-4, 4e-3),
        (0.0, 5e-3, 26e-3),
        (13e-3, 1e-3, 4e-3),
        (2e-3, 1e-6, 4e-3),
        (0.0, 1e-2, 0.3),
    ],
)
def test_decoding_keeps_half_of_its_speed_and_pieces_are_short(fixed: float, per_token: float, idle: float) -> None:
    def seconds(n: int) -> float:
        return idle + (fixed + per_token * n if n else 0.0)

    last = run(PrefillBudget(512), seconds, 400)[-200:]
    assert sum(took for _, took in last) <= 2.1 * idle * len(last)
    allowed = max(0.03, idle / 2)
    for _, took in last:
        assert took <= idle + 1.25 * allowed
    most = max(tokens for tokens, _ in last)
    assert most == 512 or seconds(2 * most) - idle > allowed  # and no lower than it must


def test_a_prompt_goes_on_where_even_one_token_takes_too_long() -> None:
    last = run(PrefillBudget(512), lambda n: 0.01 + 0.1 * (n > 0), 100)[-50:]
    assert {0, 1} <= {tokens for tokens, _ in last} <= {0, 1, 2}
    assert 2 <= sum(tokens > 0 for tokens, _ in last) <= 6


def test_it_follows_a_context_that_grows() -> None:
    budget = PrefillBudget(512)
    early = max(n for n, _ in run(budget, lambda n: 10e-3 + 1e-4 * n, 200)[-50:])
    late = max(n for n, _ in run(budget, lambda n: 10e-3 + 1e-3 * n, 200)[-50:])
    assert 250 < early < 350 and 25 <= late < 35


def test_one_slow_step_halves_it_at_most_and_doesn_t_stop_prompts() -> None:
    budget = PrefillBudget(512)
    before = max(n for n, _ in run(budget, lambda n: 10e-3 + 1e-4 * n, 200)[-50:])
    budget.learn(1, before, 5.0)
    after = run(budget, lambda n: 10e-3 + 1e-4 * n, 20)
    assert max(n for n, _ in after) >= before // 2


def test_alone_a_prompt_gets_whole_chunks_and_teaches_nothing() -> None:
    budget = PrefillBudget(256)
    assert budget.tokens(0) == 256
    run(budget, lambda n: 10e-3 + 3e-4 * n, 200)
    budget.learn(1, 0, 10e-3)
    settled = budget.tokens(1)
    budget.learn(0, 256, 1.0)
    assert budget.tokens(1) == settled


def test_what_decoding_costs_is_measured_for_each_number_of_sequences() -> None:
    """A step of 16 sequences taken for one of 1 with prompts left prompts one token a step."""
    budget = PrefillBudget(512)
    run(budget, lambda n: 4e-3 + 4e-4 * n, 100)
    assert budget.tokens(16) == 0
    found = run(budget, lambda n: 11e-3 + 4e-4 * n, 200, decoding=16)
    assert max(n for n, _ in found[-50:]) > 60


def test_a_crowd_that_waits_gets_more_than_the_few_that_decode() -> None:
    def share(prompts: int) -> float:
        steps = run(PrefillBudget(512), lambda n: 10e-3 + 1e-4 * n, 400, prompts=prompts)[-200:]
        return sum(took - 10e-3 for _, took in steps) / sum(took for _, took in steps)

    assert share(1) == pytest.approx(0.5, abs=0.05)
    assert share(3) == pytest.approx(0.75, abs=0.05)
