"""DRY's penalties: what would go on with a repetition, and what ends one."""

from __future__ import annotations

import time

import pytest

from stratakv.engine.load import LoadedModel
from stratakv.serve.dry import LONGEST, find_breakers, penalties

USUAL = {"multiplier": 1.0, "base": 2.0, "allowed": 2}


def test_what_goes_on_with_a_repetition_costs_more_the_longer_it_is() -> None:
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], {}, **USUAL) == {4: 2.0}
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3, 4], {}, **USUAL) == {9: 4.0}
    assert penalties([1, 2, 4, 9, 1, 2], {}, **USUAL) == {4: 1.0}
    assert penalties([7, 2, 4, 9, 1, 2], {}, **USUAL) == {}
    assert penalties([1, 2, 4, 8, 1, 2, 5, 1, 2], {}, **USUAL) == {4: 1.0, 5: 1.0}
    assert penalties([], {}, **USUAL) == {}


def test_breakers_end_repetitions() -> None:
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], {1: ((),)}, **USUAL) == {4: 1.0}
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], {2: ((),)}, **USUAL) == {}
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], {4: ((),)}, **USUAL) == {}, "a breaker itself costs nothing"
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], {1: ((2,),)}, **USUAL) == {}, "two tokens make it"
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], {1: ((5,),)}, **USUAL) == {4: 2.0}


def test_long_repetitions_take_no_longer_and_cost_a_finite_number() -> None:
    tokens = [5] * 32_000
    started = time.perf_counter()
    (cost,) = penalties(tokens, {}, multiplier=1.0, base=1.01, allowed=2).values()
    assert time.perf_counter() - started < 2 and cost == pytest.approx(1.01 ** (LONGEST - 2))
    (cost,) = penalties(tokens, {}, multiplier=1.0, base=99.0, allowed=2).values()
    assert cost < 1e39


def test_breakers_are_found_however_tokens_cut_them(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    (night,) = tokenizer(" night", add_special_tokens=False).input_ids[-1:]
    assert find_breakers(tokenizer, ("ght",))[night] == ((),)
    (tail,) = find_breakers(tokenizer, ("ghtly",))[night]
    assert tokenizer.decode(list(tail)).strip() == "ly"
    assert night not in find_breakers(tokenizer, ("zzz",))
