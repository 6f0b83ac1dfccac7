"""Baselines at equal bytes, and claims that can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copier import loaded_copier

from stratakv.assets import judging_text
from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import cut, read_text
from stratakv.measure.far import FarContexts, far_contexts
from stratakv.measure.results import compare
from stratakv.profile import LayerGeometry, ModelGeometry, Profile, Spans, resolve
from stratakv.tune.baselines import baselines, permuted, reference_for, rules_at, spanned
from stratakv.tune.judge import claims, format_claims, judge

LAYERS = tuple(LayerGeometry(i, i, "full", (128, 128), 2, 4) for i in range(12))
GEOMETRY = ModelGeometry("made-up", LAYERS)
TUNED = Profile("tuned", GEOMETRY, (("turbo5", "turbo5"),) * 4 + (("turbo3", "turbo4"),) * 8)


def test_rules_take_the_same_bytes_and_can_be_written_as_rule_lines() -> None:
    found = rules_at(GEOMETRY, 3168)
    assert len(found) == 15
    for profile in found:
        assert 0.98 * 3168 <= profile.bytes_per_token <= 3168
        assert resolve(profile.name, GEOMETRY).pairs == profile.pairs
    assert "0,11: q8_0; 1: turbo4; rest: turbo3" in [profile.name for profile in found]


def test_the_pair_that_the_tuning_predicted_to_be_best_is_among_the_baselines() -> None:
    told = replace(TUNED, evidence={"best_uniform": "tcq5/turbo3; recent: 1 page turbo8"})
    found = {
        profile.name: profile
        for family, profile in baselines(told, resolve("turbo4", GEOMETRY), 0)
        if family == "uniform"
    }
    assert set(found["tcq5/turbo3"].pairs) == {("tcq5", "turbo3")}
    assert set(found["tcq5/turbo3"].spans) == {Spans(1)}
    assert "tcq5/turbo3" not in {profile.name for _, profile in baselines(TUNED, resolve("turbo4", GEOMETRY), 0)}


def test_pairs_of_the_budget_s_bytes_are_there_where_the_profile_takes_a_little_less() -> None:
    """turbo5/turbo3 takes turbo4's bytes, which are what a profile of 99.7 % of them is judged at."""
    some = ("q4_0_rot", "turbo4"), ("q4_0_rot", "turbo4"), ("turbo3", "turbo4")
    less = replace(TUNED, pairs=(*some, *[("turbo4", "turbo4")] * 9))
    assert less.bytes_per_token == 3160
    names = {profile.name for _, profile in baselines(less, resolve("turbo4", GEOMETRY), 0)}
    assert {"turbo5/turbo3", "turbo3/turbo5", "tcq5/tcq3"} <= names


def test_between_two_sizes_the_pairs_of_the_smaller_one_are_there() -> None:
    """At 5 bits a value no uniform pair comes near: those of 4.625 are the best that a user could have instead."""
    some = (("turbo6", "turbo4"),) * 9 + (("turbo5", "turbo4"),) * 3
    names = {profile.name for _, profile in baselines(replace(TUNED, pairs=some), resolve("turbo4", GEOMETRY), 0)}
    assert {"turbo5/turbo4", "turbo4/turbo5", "turbo6/turbo3", "tcq6/tcq3", "tcq5/tcq4"} <= names
    assert not names & {"turbo5/turbo3", "turbo6/turbo4"}, "further below, and above"


def test_the_reference_is_the_largest_uniform_turbo_type_that_fits() -> None:
    assert reference_for(GEOMETRY, 3168).name == "turbo4"
    assert reference_for(GEOMETRY, 3160).name == "turbo4", "within the tolerance"
    assert reference_for(GEOMETRY, 3100).name == "turbo3"
    assert reference_for(GEOMETRY, 100).name == "turbo2"


def test_permutations_move_pairs_only_between_layers_of_the_same_geometry() -> None:
    mixed = ModelGeometry("mixed", (*LAYERS[:6], *(LayerGeometry(i, i, "full", (64, 64), 2, 4) for i in range(6, 12))))
    tuned = Profile("tuned", mixed, TUNED.pairs)
    found = permuted(tuned, 10, seed=0)
    assert len({profile.pairs for profile in found}) == 10
    for profile in found:
        assert profile.bytes_per_token == tuned.bytes_per_token
        assert sorted(profile.pairs[:6]) == sorted(tuned.pairs[:6])
        assert profile.pairs != tuned.pairs
    assert permuted(Profile("same", GEOMETRY, (("turbo4", "turbo4"),) * 12), 10, 0) == [], "nothing to permute"


def test_permutations_move_spans_with_their_pairs() -> None:
    """Layers with spans of their own: every permutation has the profile's bytes at any length, none the widest spans twice."""
    sizes = [Spans(4, first=1), Spans(), *[Spans(1)] * 10]
    tuned = replace(TUNED, spans=tuple(sizes))
    found = permuted(tuned, 10, seed=0)
    assert len({profile.storages for profile in found}) == 10
    for profile in found:
        both = zip(profile.pairs, profile.spans, strict=True)
        assert sorted(map(repr, both)) == sorted(map(repr, zip(tuned.pairs, tuned.spans, strict=True)))
        assert profile.bytes_at(2048) == tuned.bytes_at(2048)
    same = replace(Profile("same", GEOMETRY, (("turbo4", "turbo4"),) * 12), spans=tuple(sizes))
    assert len(permuted(same, 3, 0)) == 3, "the spans alone can be moved"
    moved = [
        profile for family, profile in baselines(tuned, reference_for(GEOMETRY, 3168), 5) if family == "permutation"
    ]
    assert [profile.spans for profile in moved] == [profile.spans for profile in permuted(tuned, 5, seed=0)]


def test_every_family_is_there_and_nothing_twice() -> None:
    found = baselines(TUNED, reference_for(GEOMETRY, TUNED.bytes_per_token), 20)
    names = {profile.name for _, profile in found}
    assert {"turbo4", "tcq4", "q4_0_rot", "q8_0/turbo4", "turbo3/turbo5", "tcq3/tcq5", "mode 7", "edges3"} <= names
    assert [family for family, _ in found].count("permutation") == 20
    assert len({profile.pairs for _, profile in found}) == len(found)
    assert found[0] == ("tuned", TUNED)


def test_baselines_of_a_profile_with_spans_have_the_same_and_two_have_none() -> None:
    wish = Spans(2, first=1)
    tuned = replace(TUNED, spans=(wish,) * 12)
    reference = spanned(reference_for(GEOMETRY, tuned.bytes_per_token), wish)
    found = baselines(tuned, reference, 5)
    assert found[0] == ("tuned", tuned)
    bare = [(family, profile.name) for family, profile in found if not any(profile.spans)]
    assert bare == [("bare", "tuned, no spans"), ("uniform", "turbo4")]
    names = {profile.name for _, profile in found}
    assert {"turbo4 + spans", "mode 7 + spans", "edges3 + spans", "permutation 1"} <= names
    assert len({profile.storages for _, profile in found}) == len(found)
    mode = next(profile for _, profile in found if profile.name == "mode 7 + spans")
    assert mode.pairs[0] == ("turbo4", "q8_0") and mode.spans[0] == wish


def test_the_claim_about_spans() -> None:
    rows = [_row("tuned", 1e-3, 3300), _row("uniform", 3e-3, 3300, 1), _row("bare", 2e-3, 3168, 2)]
    (found,) = [each for each in claims(rows, rows[1], 3300) if "without spans" in each["claim"]]
    assert found["holds"] and found["value"] == pytest.approx(-0.5, abs=0.05)
    assert "take 4.0% fewer bytes" in found["claim"]
    rows[2] = _row("bare", 1e-3, 3168, 3)
    (found,) = [each for each in claims(rows, rows[1], 3300) if "without spans" in each["claim"]]
    assert not found["holds"]


def _row(family: str, level: float, size: int = 3168, seed: int = 0) -> dict[str, Any]:
    kld = level * (1 + 0.1 * np.random.default_rng(seed).random(16))
    return {
        "family": family,
        "name": family,
        "bytes_per_token": size,
        "kld_mean": kld.mean(),
        "kld_per_chunk": kld.tolist(),
    }


@pytest.mark.parametrize(
    ("level", "size", "expected"),
    [
        (0.6, 3168, [True, True, True, True]),
        (0.8, 3168, [False, True, True, True]),  # less than 30 %
        (0.95, 3168, [False, True, False, False]),  # a rule and a permutation are better
        (0.6, 3100, [False, False, False, True]),  # too few bytes to be called equal
    ],
)
def test_claims(level: float, size: int, expected: list[bool]) -> None:
    rows = [_row("tuned", level, size), _row("uniform", 1.0, seed=1), _row("uniform", 1.3, seed=2)]
    rows += [_row("rule", 0.9, seed=3), _row("rule", 0.1, 9999, seed=4), _row("permutation", 0.9, seed=5)]
    found = claims(rows, rows[1], 3168)
    assert [each["holds"] for each in found] == expected
    assert format_claims({"claims": found}).count("DOES NOT HOLD") == expected.count(False)


def test_no_difference_from_the_lowest_permutation_is_not_called_one() -> None:
    rows = [_row("tuned", 0.6), _row("uniform", 1.0, seed=1), _row("permutation", 0.6, seed=7)]
    *_, last = claims(rows, rows[1], 3168)
    low, high = last["ci95"]
    assert low < 0 < high
    assert last["holds"] is None
    assert "not shown: less mean KLD than the lowest of 1 permutations" in format_claims({"claims": [last]})


def test_the_same_numbers_as_compare_and_nothing_twice(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = cut(read_text(judging_text()), loaded.tokenizer, 32, 4)
    tuned = Profile("tuned", loaded.geometry, TUNED.pairs)
    monkeypatch.setattr(
        "stratakv.tune.judge.baselines",
        lambda tuned, reference, permutations: [("tuned", tuned), ("uniform", reference), *_permutations(tuned)],
    )
    data = judge(loaded, contexts, tuned, runs=tmp_path, batch=32)
    plain = compare(loaded, contexts, [tuned], resolve("turbo4", loaded.geometry), batch=32)
    for row, other in zip(data["rows"], plain["rows"], strict=False):
        for name in ("kld_mean", "kld_diff_ci95", "ppl", "top1", "kld_p99", "verdict"):
            assert row[name] == other[name]
    monkeypatch.setattr("stratakv.tune.scores.measure", None)
    again = judge(loaded, contexts, tuned, runs=tmp_path, batch=32)
    assert again["rows"] == data["rows"]


def test_far_predictions_are_measured_kept_and_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copier = loaded_copier()
    text = read_text(judging_text())
    contexts, far = cut(text, copier.tokenizer, 32, 4), far_contexts(text, copier.tokenizer, 4, 512)
    assert isinstance(far, FarContexts)
    tuned = Profile("tuned", copier.geometry, (("turbo5", "turbo3"),))
    monkeypatch.setattr(
        "stratakv.tune.judge.baselines", lambda tuned, reference, _: [("tuned", tuned), ("uniform", reference)]
    )
    seen: list[tuple[int, int]] = []
    data = judge(copier, contexts, tuned, far=far, runs=tmp_path, progress=lambda *done: seen.append(done))
    assert seen == [(done, 24) for done in range(1, 25)], "f16, tuned and uniform over each of 8 contexts"
    plain = compare(copier, contexts, [tuned], resolve("turbo4", copier.geometry), far=far)
    assert data["far"] == plain["far"]
    for row, other in zip(data["rows"], plain["rows"], strict=True):
        assert row["far"] | {"seconds": 0} == other["far"] | {"seconds": 0}
    (claim,) = (each for each in data["claims"] if "far" in each["claim"])
    assert claim["claim"] == "less KLD of far predictions than uniform turbo4"
    change = data["rows"][0]["far"]["kld_mean"] / data["rows"][1]["far"]["kld_mean"] - 1
    assert claim["value"] == pytest.approx(change)
    assert claim["holds"] == (None if claim["ci95"][0] <= 0 <= claim["ci95"][1] else change < 0)
    monkeypatch.setattr("stratakv.tune.scores.measure", None)
    assert judge(copier, contexts, tuned, far=far, runs=tmp_path)["rows"] == data["rows"]


def _permutations(tuned: Profile) -> list[tuple[str, Profile]]:
    return [("permutation", profile) for profile in permuted(tuned, 1, 0)]


def test_the_text_of_the_tuning_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    text = read_text(judging_text())
    tuned = Profile("tuned", loaded.geometry, TUNED.pairs, evidence={"text": text.sha256})
    with pytest.raises(UserError, match="tuned on"):
        judge(loaded, cut(text, loaded.tokenizer, 32, 4), tuned, runs=tmp_path)
