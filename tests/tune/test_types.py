"""Which types a choice may use."""

from __future__ import annotations

import numpy as np

from stratakv.kvtypes import kv_type
from stratakv.profile import LayerGeometry, ModelGeometry
from stratakv.tune.types import useful_types

GEOMETRY = ModelGeometry("made-up", tuple(LayerGeometry(i, i, "full", (128, 128), 2, 4) for i in range(4)))
TYPES = ("q4_0", "q4_0_rot", "turbo3", "turbo4", "turbo5", "q5_0_rot")


def _damage(**factors: float) -> np.ndarray:
    """Of types on one line of log damage over bytes, times a factor."""
    one = [factors.get(name, 1.0) * 4.0 ** -(kv_type(name).nbytes(128) * 8 / 128) for name in TYPES]
    return np.broadcast_to(np.array(one), (4, 2, len(TYPES)))


def test_a_type_that_another_one_beats_in_bytes_and_damage_is_left_out() -> None:
    kept = useful_types(GEOMETRY, TYPES, _damage(q4_0=1.5), ())
    assert kept == ("q4_0_rot", "turbo3", "turbo4", "turbo5", "q5_0_rot")


def test_a_type_that_a_mix_of_its_neighbours_beats_by_far_is_left_out() -> None:
    assert "q4_0_rot" in useful_types(GEOMETRY, TYPES, _damage(q4_0=9, q4_0_rot=1.5), ())
    assert "q4_0_rot" not in useful_types(GEOMETRY, TYPES, _damage(q4_0=9, q4_0_rot=2.5), ())


def test_the_operating_types_stay() -> None:
    assert "q4_0" in useful_types(GEOMETRY, TYPES, _damage(q4_0=9), (("q4_0", "turbo4"),))
