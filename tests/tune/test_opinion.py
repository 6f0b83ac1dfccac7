"""The second opinion: how much it costs, what its one line says, that its interval is of what it says."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_effort import TINY

from stratakv.errors import UserError
from stratakv.tune.effort import EFFORTS
from stratakv.tune.opinion import NONE_ASKED, PASSES, Opinion, doubts_in_words, second_opinion

GRADIENTS = EFFORTS["first"]


@pytest.mark.parametrize("passes", [3, 4, 5, 6, 7, 8, 12, 16, 100])
def test_it_never_costs_more_than_was_said(passes: int) -> None:
    opinion = Opinion.of(passes, TINY)
    profiles = 2 + opinion.third
    assert opinion.contexts == passes // 3
    assert opinion.contexts * (1 + profiles) <= passes
    assert not opinion.wide


def test_what_goes_with_an_effort() -> None:
    assert Opinion.of(None, GRADIENTS) == Opinion.of(PASSES, GRADIENTS) == Opinion(1, third=True)
    assert Opinion.of(None, TINY) == Opinion(TINY.validate_contexts, third=True, wide=True)
    assert Opinion.of(0, GRADIENTS) == Opinion.of(0, TINY) == Opinion(0, third=False)


@pytest.mark.parametrize("passes", [-1, 1, 2])
def test_too_few_passes_are_refused(passes: int) -> None:
    with pytest.raises(UserError, match=f"--second-opinion {passes}: at least 3 forward passes"):
        Opinion.of(passes, GRADIENTS)


def test_a_text_with_too_few_contexts_is_said() -> None:
    assert Opinion.of(12, GRADIENTS).warnings(4) == []
    (warning,) = Opinion.of(12, GRADIENTS).warnings(2)
    assert "of 2 contexts, not 4" in warning


def drawn(contexts: int, predictions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(-4, 0.5, (contexts, predictions))


def test_one_context_has_an_interval_over_its_blocks_and_says_so() -> None:
    other = drawn(1, 255)
    found = second_opinion(0.6 * other, {"turbo5/turbo3": ("the best uniform pair", other)}, 512, 4)
    assert (found["over"], found["blocks"]) == ("blocks", 7)
    (against,) = found["against"]
    assert against["kind"] == "better"
    assert against["change"] == pytest.approx(-0.4)
    assert against["change_ci95"] == pytest.approx([-0.4, -0.4])
    assert "-40 % [-40, -40] against turbo5/turbo3, the best uniform pair" in found["words"]
    assert "4 forward passes, 1 context of 512 tokens that nothing was chosen on" in found["words"]
    assert "intervals over blocks of 32 predictions" in found["words"]
    low, high = found["kld_ci95"]
    assert low < found["kld"] < high


def test_four_contexts_have_an_interval_over_contexts() -> None:
    kld = drawn(4, 255)
    found = second_opinion(kld, {}, 512, 12)
    assert (found["over"], found["blocks"]) == ("contexts", 4)
    assert "blocks" not in found["words"]
    assert found["kld"] == pytest.approx(kld.mean())


def test_noise_shows_nothing_and_a_worse_profile_is_worse() -> None:
    kld, other = drawn(1, 255), drawn(1, 255, seed=1)
    against = {"same": ("x", other), "finer": ("y", 0.5 * kld)}
    found = second_opinion(kld, against, 512, 4)
    kinds = {each["name"]: each["kind"] for each in found["against"]}
    assert kinds == {"same": "not shown", "finer": "worse"}
    assert "; no difference shown against same, x (" in found["words"]
    assert "+100 % [+100, +100] against finer, y" in found["words"]


def test_what_is_not_shown_to_be_better_warns() -> None:
    kld, same = drawn(1, 255), drawn(1, 255, seed=1)
    what = "best, the best uniform pair in this budget"

    def told(other: np.ndarray, passes: int = 4) -> list[str]:
        return doubts_in_words("mine", second_opinion(kld, {"best": (what.partition(", ")[2], other)}, 512, passes))

    assert told(2 * kld) == []
    (warning,) = told(same)
    assert f"mine is not shown to be better than {what}: measure more (--second-opinion 12 shows" in warning
    (warning,) = told(0.5 * kld, passes=24)
    assert f"mine is worse than {what}: take that, or measure more (--second-opinion 48 shows" in warning
    assert doubts_in_words("mine", NONE_ASKED) == doubts_in_words("mine", second_opinion(kld, {}, 512, 3)) == []


def test_contexts_too_short_for_an_interval_have_none() -> None:
    found = second_opinion(drawn(1, 3), {"f16": ("exact", np.zeros((1, 3)))}, 8, 3)
    assert found["kld_ci95"] is None
    assert found["against"][0] == {
        "name": "f16",
        "what": "exact",
        "kld": 0.0,
        "change": 0.0,
        "change_ci95": None,
        "kind": "not shown",
    }
