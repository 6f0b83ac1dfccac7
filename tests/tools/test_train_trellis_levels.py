from __future__ import annotations

import ast

import numpy as np
from train_trellis_levels import chosen, directions, error, lines, rounded, trained

from stratakv.kvtypes.trellis_levels import LEVELS
from stratakv.kvtypes.viterbi import TRELLISES


def test_training_again_gives_such_levels() -> None:
    """A small training finds nearly the table's levels, and none with less error."""
    trellis, levels = TRELLISES[8], LEVELS[3, 8]
    y, unseen = directions(200, 128, 1), directions(500, 128, 2)
    again = rounded(y, trained(y, 3, trellis, 10), trellis)
    places = [np.array(each.half) * 100 / each.ratio for each in (levels, again)]
    assert np.allclose(places[0], places[1], rtol=0.1, atol=0.03)
    errors = [error(unseen, chosen(unseen, each, trellis), each) for each in (levels, again)]
    assert errors[0] <= errors[1] * 1.001
    assert errors[1] < 1.02 * errors[0]


def test_lines_are_python_of_the_table() -> None:
    reached, entry = lines((2,), (8,), rounds=1)
    assert reached.startswith("    # 0.0")
    assert ast.literal_eval("[" + entry.replace(": Levels", ", ").strip().removesuffix(",") + "]")[0] == (2, 8)
