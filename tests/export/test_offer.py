"""Offers: the best that can be said, by measurement where there is one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from evidences import evidence
from geometries import plain

from stratakv.export.costs import MeasuredCosts, distance_costs, relative_error
from stratakv.export.offer import offer, offer_data
from stratakv.export.target import NotExpressible, budget
from stratakv.export.targets import target
from stratakv.kvtypes import kv_type
from stratakv.profile import Profile, resolve

MODEL = plain(12)


@pytest.fixture(scope="module")
def costs() -> MeasuredCosts:
    found = MeasuredCosts.of(evidence(), MODEL)
    assert found is not None
    return found


def tuned() -> Profile:
    return Profile("tuned", MODEL, tuple((k, v) for k, v in evidence()["chosen"]["pairs"]))


def test_measured_types_cost_what_was_measured_and_others_lie_between(costs):
    assert costs(0, 1, "turbo3") == pytest.approx(1.6e-3)
    assert costs(5, 0, "turbo4") == 0
    assert costs(0, 1, "turbo5") < costs(0, 1, "q4_0_rot") < costs(0, 1, "turbo4")
    assert costs(0, 1, "f16") <= costs(0, 1, "q8_0")
    assert costs.estimated((("q4_0_rot", "turbo3"), *[("turbo4", "f16")] * 11)) == ["f16", "q4_0_rot"]
    assert costs.total((("turbo4", "turbo4"),) * 12) == pytest.approx(3e-3)


def test_evidence_without_some_layers_gives_no_costs():
    data = evidence()
    data["sensitivity"]["cells"] = [cell for cell in data["sensitivity"]["cells"] if cell["ordinal"]]
    assert MeasuredCosts.of(data, MODEL) is None


def test_the_tuners_table_of_pairs_comes_first():
    data = evidence()
    types = ["turbo3", "turbo4", "turbo5"]
    layer = [[3e-3, 1.5e-3, 1.2e-3], [1e-3, 2.5e-4, 2e-4], [9e-4, 2e-4, 1.5e-4]]
    data["damages"] = {"types": types, "by_layer": [layer] * 12}
    found = MeasuredCosts.of(data, MODEL)
    assert found is not None
    assert found(0, 0, "turbo3") == pytest.approx(1.25e-3) and found(0, 1, "turbo3") == pytest.approx(7.5e-4)
    assert found.total((("turbo4", "turbo4"),) * 12) == pytest.approx(3e-3)
    assert found.total((("turbo3", "turbo3"),) * 12) == pytest.approx(36e-3)  # not 27: together they do more
    assert found.total((("turbo3", "q4_0_rot"),) * 12) > found.total((("turbo3", "turbo5"),) * 12)


def test_errors_rise_as_bits_fall():
    errors = [relative_error(name, 128) for name in ("f16", "q8_0", "turbo6", "turbo5", "turbo4", "turbo3", "turbo2")]
    assert errors == sorted(errors)


def test_buuns_offer_spends_its_bytes_where_the_evidence_says(costs):
    offered = offer(tuned(), target("buun"), costs)
    assert offered.pairs[0][1] in ("turbo8", "q8_0")  # V of layer 0 matters most, turbo5 is not there
    assert offered.bytes_per_token <= budget(tuned())
    data = offer_data(tuned(), offered, target("buun"), costs)
    assert data["predicted_kld"] < costs.total(
        resolve("turbo4", MODEL).pairs
    )  # 1 % more bytes than asked for pay for it
    assert data["within_bytes"] and data["text"] == offered.name
    assert any(change.startswith("V turbo5 -> ") for change in data["changes"])


def test_iks_offer_is_the_best_of_all():
    """On three layers each side may be anything that is all rotated or all plain: so few that all can be tried."""
    small = plain(3)
    roomy = Profile("roomy", small, (("q5_0", "q5_0"), ("q5_0", "q4_1"), ("q5_1", "q5_0")))
    found = MeasuredCosts.of(evidence(layers=3), small)
    assert found is not None
    stock = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
    families = [("f16", *stock), ("f16", *(f"{name}_rot" for name in stock))]
    sides = []
    for side in (0, 1):
        choices = [names for family in families for names in product(family, repeat=3)]
        sizes = [sum(2 * kv_type(name).nbytes(128) for name in names) for names in choices]
        costs = [sum(found(i, side, name) for i, name in enumerate(names)) for names in choices]
        sides.append((np.array(sizes), np.array(costs)))
    size, cost = (k[:, None] + v[None, :] for k, v in zip(*sides, strict=True))
    best = cost[size <= budget(roomy)].min()
    pairs = target("ik").nearest(roomy, found)
    got = sum(found(i, side, name) for i, pair in enumerate(pairs) for side, name in enumerate(pair))
    assert Profile("", small, pairs).bytes_per_token <= budget(roomy)
    assert got == pytest.approx(best, rel=1e-12)


def test_without_evidence_the_nearest_in_bits():
    profile = resolve("0: turbo4/turbo5; rest: turbo4", MODEL)
    assert offer(profile, target("fork"), None).name == "turbo4"
    assert offer(profile, target("buun"), None).name == "turbo4"
    data = offer_data(profile, offer(profile, target("ik"), None), target("ik"), None)
    assert data["text"] == "q4_0_rot" and not data["within_bytes"]  # at equal bits the rotated form
    assert data["predicted_kld"] is None


@pytest.mark.parametrize(("name", "nearest"), [("fork", "turbo4"), ("buun", "turbo4"), ("ik", "q4_0_rot")])
def test_trellis_types_become_the_nearest_in_bits(name, nearest):
    profile = resolve("tcq4", MODEL)
    with pytest.raises(
        NotExpressible, match=r"no type for K tcq4 in KV layers .*; trellis types are stratakv's alone\)"
    ):
        target(name).command(profile, "model")
    assert offer(profile, target(name), None).name == nearest


def test_turbo_in_place_of_trellis_types_is_named_where_padding_makes_it_larger():
    """Heads of 64 are padded to 128 in the fork: in tcq4's bytes there is only turbo2, which nobody wants unasked."""
    small = plain(12, head_dim=64)
    profile, goal = resolve("tcq4; recent: 1 page", small), target("fork")
    data = offer_data(profile, offer(profile, goal, None), goal, None)
    assert data["text"] == "turbo2" and data["turbo"] == {"text": "turbo4", "bytes_per_token": 12 * 2 * 2 * 66}
    for text, name in (("tcq4", "buun"), ("tcq5", "fork"), ("turbo5", "fork"), ("tcq4", "ik")):
        profile = resolve(text, small)
        assert offer_data(profile, offer(profile, target(name), None), target(name), None)["turbo"] is None


def test_own_types_are_no_distance():
    profile = resolve("q8_0/turbo3", MODEL)
    cost = distance_costs(profile)
    assert cost(0, 1, "turbo3") == 0 and cost(0, 0, "turbo8") == pytest.approx(2 * 0.375)
    assert cost(0, 1, "turbo4") == 1 and cost(0, 1, "turbo2") == 2
