"""Predictions corrected by measurements: what is there is found, noise is not followed, more measurements are never worse."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.profile import LayerGeometry, ModelGeometry
from stratakv.tune.damage import DamageModel, Measured, Terms, cross_validated, fitted
from stratakv.tune.problem import Problem
from stratakv.tune.verify import designed, fidelity

TYPES = ("turbo3", "turbo4", "turbo5")
LAYERS = 6
OPERATING = (("turbo4", "turbo4"),) * LAYERS
GEOMETRY = ModelGeometry("made-up", tuple(LayerGeometry(i, i, "full", (128, 128), 2, 4) for i in range(LAYERS)))
BUDGET = 132 * 2 * LAYERS
PROBLEM = Problem(GEOMETRY, BUDGET, None, TYPES)
_rng = np.random.default_rng(0)
DAMAGE = np.exp(0.5 * _rng.standard_normal((LAYERS, 2, 1))) * np.array([4.0, 1.0, 0.25])
TERMS = Terms(TYPES, OPERATING, DAMAGE)
LEVEL = float(DAMAGE[..., 1].sum())
FACTORS = np.exp(0.2 * _rng.standard_normal((LAYERS, 2)))


def _true(pairs, factors=FACTORS, together=0.0):
    """Change of KLD if each cell's damage were its factor times the predicted one, and K and V of a layer added up to more."""
    cells = np.array([[TYPES.index(name) for name in pair] for pair in pairs])
    now = DAMAGE[np.arange(LAYERS)[:, None], [0, 1], cells]
    more = together * (np.sqrt(now.prod(axis=1)) - np.sqrt(DAMAGE[..., 1].prod(axis=1)))
    return float(((now - DAMAGE[..., 1]) * factors).sum() + more.sum()) / LEVEL


def _rows(count, noise, seed=0, **truth):
    rng = np.random.default_rng(seed)
    return [
        Measured(pairs, _true(pairs, **truth) + noise * float(rng.standard_normal()), 4)
        for pairs in designed(PROBLEM, TERMS, count)
    ]


def _errors(model: DamageModel, **truth) -> float:
    others = designed(PROBLEM, TERMS, 60, seed=99)
    return float(np.std([model.predict(pairs) / LEVEL - 1 - _true(pairs, **truth) for pairs in others]))


def test_without_measurements_the_gradients_stand() -> None:
    model = fitted(TERMS, LEVEL, [])
    better = (("turbo5", "turbo4"), *OPERATING[1:])
    assert model.predict(OPERATING) == pytest.approx(LEVEL)
    assert model.predict(better) == pytest.approx(LEVEL + DAMAGE[0, 0, 2] - DAMAGE[0, 0, 1])
    table = model.damages()
    assert sum(known[pair] for known, pair in zip(table, better, strict=True)) == pytest.approx(model.predict(better))


def test_the_terms_of_an_assignment_are_the_sum_of_its_layers() -> None:
    pairs = (("turbo5", "turbo3"), ("turbo4", "turbo3"), *OPERATING[2:])
    base, size, terms = TERMS.row(pairs)
    assert base == pytest.approx(LEVEL * _true(pairs, np.ones((LAYERS, 2))))
    assert size > abs(base)
    assert terms[[0, 1, 3]] == pytest.approx(DAMAGE[[0, 0, 1], [0, 1, 1], [2, 0, 0]] - DAMAGE[[0, 0, 1], [0, 1, 1], 1])
    assert (TERMS.row(OPERATING)[2] == 0).all()


def test_designed_assignments_are_different_and_within_the_budget() -> None:
    found = designed(PROBLEM, TERMS, 50)
    assert len(set(found)) == len(found) >= 49
    assert OPERATING not in found
    assert all(PROBLEM.size(pairs) <= BUDGET for pairs in found)
    assert found == designed(PROBLEM, TERMS, 50), "a resumed run measures the same ones"


def test_a_model_whose_cells_differ_much_still_gets_as_many() -> None:
    damage = np.exp(2.0 * np.random.default_rng(4).standard_normal((3, 2, 1))) * np.array([4.0, 1.0, 0.25])
    geometry = ModelGeometry("three", GEOMETRY.layers[:3])
    terms = Terms(TYPES, (("turbo4", "turbo4"),) * 3, damage)
    assert len(designed(Problem(geometry, 132 * 6, None, TYPES), terms, 40)) >= 39


def test_more_measurements_predict_unseen_assignments_better() -> None:
    alone = _errors(fitted(TERMS, LEVEL, []))
    few, many = (_errors(fitted(TERMS, LEVEL, _rows(count, 0.03))) for count in (30, 200))
    assert many < few < alone
    assert many < 0.5 * alone


def test_what_k_and_v_do_together_is_found() -> None:
    model = fitted(TERMS, LEVEL, _rows(200, 0.01, together=0.4))
    assert _errors(model, together=0.4) < 0.015
    assert model.mean[TERMS.groups >= 2].sum() > 0


def test_noise_is_not_followed() -> None:
    """Where the gradients are right, measurements of much noise leave the choice where it was."""
    ones = np.ones((LAYERS, 2))
    model = fitted(TERMS, LEVEL, _rows(40, 0.2, factors=ones))
    assert _errors(model, factors=ones) < 0.05
    solved = PROBLEM.solve(model.damages()).pairs
    best = PROBLEM.solve(fitted(TERMS, LEVEL, []).damages()).pairs
    assert _true(solved, ones) <= _true(best, ones) + 0.03


def test_draws_come_closer_as_measurements_come_in() -> None:
    pairs = designed(PROBLEM, TERMS, 1, seed=5)[0]

    def spread(model: DamageModel) -> float:
        rng = np.random.default_rng(0)
        tables = [model.drawn(rng) for _ in range(40)]
        return float(np.std([sum(k[p] for k, p in zip(table, pairs, strict=True)) for table in tables]))

    assert spread(fitted(TERMS, LEVEL, _rows(200, 0.02))) < 0.5 * spread(fitted(TERMS, LEVEL, []))


def test_moved_keeps_differences() -> None:
    model = fitted(TERMS, LEVEL, _rows(50, 0.02))
    one, two = designed(PROBLEM, TERMS, 2, seed=7)
    moved = model.moved(one, 1.5)
    assert moved.predict(one) == pytest.approx(1.5)
    assert moved.predict(two) - 1.5 == pytest.approx(model.predict(two) - model.predict(one))


def test_a_cross_validated_prediction_has_not_seen_its_row() -> None:
    rows = _rows(60, 0.01)
    spoilt = [*rows]
    spoilt[7] = Measured(rows[7].pairs, rows[7].change + 3.0, 4)
    before, after = (cross_validated(TERMS, LEVEL, each, range(60))[7] for each in (rows, spoilt))
    assert abs(after - before) < 0.3


def test_fidelity_tells_what_the_gradients_alone_would_do() -> None:
    rows = _rows(100, 0.01, together=0.3)
    found = fidelity(PROBLEM, TERMS, LEVEL, rows, range(100))
    assert len(found["points"]) == 100
    assert found["r2"] > 0.9 > found["gradients"]["r2"]
    assert abs(found["bias"]) < 0.01
    nothing = fidelity(PROBLEM, TERMS, LEVEL, [], [])
    assert nothing["r2"] is None
    assert nothing["bias"] is None
