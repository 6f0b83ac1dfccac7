"""Drawing tokens: each sampler alone, against what it must do."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from stratakv.errors import UserError
from stratakv.serve.samplers import SamplingParams
from stratakv.serve.sampling import Sampler, log_probabilities

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def drawn(
    count: int = 400, logits: torch.Tensor = LOGITS, tokens: tuple[int, ...] = (), **params: object
) -> Counter[int]:
    sampler = Sampler(SamplingParams(**{**NEUTRAL, "seed": 1, **params}))
    return Counter(sampler.draw(logits, tokens) for _ in range(count))


def test_greedy_takes_the_best() -> None:
    assert drawn(temperature=0.0) == {1: 400}


def test_draws_follow_the_probabilities() -> None:
    counts = drawn(8000)
    for token, share in enumerate(torch.softmax(LOGITS, 0).tolist()):
        assert counts[token] / 8000 == pytest.approx(share, abs=4 * math.sqrt(share / 8000))


def test_top_k_top_p_min_p_cut() -> None:
    assert set(drawn(top_k=2)) == {1, 4}
    shares = torch.softmax(LOGITS, 0)
    assert set(drawn(top_p=float(shares[1]) - 1e-3)) == {1}
    assert set(drawn(top_p=float(shares[1] + shares[4]) - 1e-3)) == {1, 4}
    assert set(drawn(min_p=math.exp(-1.01))) == {1, 2, 4}


def test_temperature_comes_after_the_cuts() -> None:
    hot = drawn(top_p=float(torch.softmax(LOGITS, 0)[1]) - 1e-3, temperature=100.0)
    assert set(hot) == {1}


def test_penalties() -> None:
    assert drawn(temperature=0.0, repeat_penalty=2.0, tokens=(1,)) == {4: 400}
    assert drawn(temperature=0.0, repeat_penalty=2.0, tokens=(1, 0), repeat_last_n=1) == {1: 400}
    assert drawn(temperature=0.0, repeat_penalty=2.0, tokens=(1, 0), repeat_last_n=-1) == {4: 400}
    assert drawn(temperature=0.0, repeat_penalty=2.0, tokens=(1,), repeat_last_n=0) == {1: 400}
    assert drawn(temperature=0.0, presence_penalty=0.4, tokens=(1, 1)) == {1: 400}
    assert drawn(temperature=0.0, frequency_penalty=0.4, tokens=(1, 1)) == {4: 400}
    assert drawn(temperature=0.0, repeat_penalty=2.0, tokens=(3,), logits=torch.tensor([-1.5, -5.0, -5.0, -1.0])) == {
        0: 400
    }


def test_logit_bias_bans_and_favours() -> None:
    assert drawn(temperature=0.0, logit_bias={1: -math.inf}) == {4: 400}
    assert drawn(temperature=0.0, logit_bias={3: 100.0}) == {3: 400}
    assert drawn(temperature=0.0, logit_bias={99: 5.0}) == {1: 400}


def test_a_seed_repeats_and_masks_hold() -> None:
    one, two, other = (Sampler(SamplingParams(seed=seed)) for seed in (7, 7, 8))
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0))
    streams = [[s.draw(logits, ()) for _ in range(30)] for s in (one, two, other)]
    assert streams[0] == streams[1] != streams[2]
    mask = torch.zeros(200, dtype=torch.bool)
    mask[5] = True
    assert one.draw(logits, (), mask) == 5
    with pytest.raises(ValueError, match="no token is allowed"):
        one.draw(logits, (), torch.zeros(200, dtype=torch.bool))


def test_xtc_leaves_out_the_best_as_often_as_asked() -> None:
    shares = torch.softmax(LOGITS, 0)
    often = drawn(2000, xtc_probability=0.3, xtc_threshold=float(shares[4]) - 1e-3)
    assert often[1] / 2000 == pytest.approx(0.7 * float(shares[1]), abs=0.05)
    assert set(drawn(xtc_probability=1.0, xtc_threshold=0.1, temperature=0.0)) == {2}


def test_samplers_run_in_the_order_given() -> None:
    """At a temperature of 100 all tokens are alike, so that top_p after it keeps all of them."""
    hot = {"top_p": float(torch.softmax(LOGITS, 0)[1]) - 1e-3, "temperature": 100.0}
    assert set(drawn(**hot)) == {1} and set(drawn(**hot, samplers=("temperature", "top_p"))) > {1}
    assert set(drawn(top_k=1, samplers=())) == set(range(5))


def test_samplers_that_are_off_change_nothing() -> None:
    off = {"xtc_threshold": 0.3, "dynatemp_exponent": 3.0, "dry_base": 9.0, "dry_allowed_length": 0, "top_n_sigma": 0.0}
    assert drawn(tokens=(1, 1, 1), **off, repeat_last_n=0) == drawn()


def test_a_draw_hangs_on_probabilities_not_on_ranks() -> None:
    """The same seed, logits that differ by rounding, and a token more at the end of the nucleus."""
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    moved = logits + 1e-5 * torch.randn(3000, generator=torch.Generator().manual_seed(2))
    one, two = (Sampler(SamplingParams(**NEUTRAL, seed=3)) for _ in range(2))
    assert sum(one.draw(logits, ()) == two.draw(moved, ()) for _ in range(500)) >= 499
    one, two = (Sampler(SamplingParams(**{**NEUTRAL, "top_k": k}, seed=3)) for k in (400, 401))
    assert sum(one.draw(logits, ()) == two.draw(logits, ()) for _ in range(500)) >= 495


def test_logits_are_left_alone() -> None:
    before = LOGITS.clone()
    drawn(repeat_penalty=2.0, tokens=(1,), logit_bias={2: 1.0})
    assert torch.equal(LOGITS, before)


def test_log_probabilities() -> None:
    own, top = log_probabilities(LOGITS, 2, 2)
    logs = torch.log_softmax(LOGITS, 0)
    assert own == pytest.approx(float(logs[2]))
    assert [token for token, _ in top] == [1, 4] and top[0][1] == pytest.approx(float(logs[1]))
    assert log_probabilities(LOGITS, 0, 0)[1] == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0}, {"min_p": 2.0}, {"seed": -1},
        {"logprobs": 21}, {"repeat_penalty": 0.0}, {"logit_bias": {-1: 0.0}}, {"logit_bias": {1: math.nan}},
        {"presence_penalty": math.inf}, {"repeat_last_n": -2}, {"typical_p": 0.0}, {"xtc_probability": 1.1},
        {"xtc_threshold": -0.1}, {"dynatemp_range": -1.0}, {"dynatemp_exponent": math.nan}, {"dry_multiplier": -1.0},
        {"dry_base": 0.5}, {"dry_allowed_length": -1}, {"dry_penalty_last_n": -2}, {"samplers": ("top_k", "magic")},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_parameters_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SamplingParams(**wrong)


@pytest.mark.parametrize(
    "given", [{"temperature": 1e-310}, {"temperature": 0, "dynatemp_range": 1, "dynatemp_exponent": 100}]
)
def test_a_temperature_next_to_nothing_draws_the_best(given: dict[str, float]) -> None:
    """Logits became infinite, and none was left to draw from."""
    logits = torch.tensor([1.0, 30.0, 0.0, -3.0] * 10)
    logits[5:] -= 25
    params = SamplingParams(**given, seed=1, top_k=0, top_p=1, min_p=0)  # type: ignore[arg-type]
    assert Sampler(params).draw(logits, [1]) == 1
