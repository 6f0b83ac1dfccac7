from __future__ import annotations

import pytest

from stratakv.errors import UserError
from stratakv.profile import LayerGeometry, ModelGeometry
from stratakv.tune.budget import Budget, budget_from

GEOMETRY = ModelGeometry("made-up", tuple(LayerGeometry(i, i, "full", (128, 128), 2, 4) for i in range(12)))


def test_the_four_ways_to_say_a_budget() -> None:
    assert budget_from(GEOMETRY) == Budget("turbo4", 3168)
    assert budget_from(GEOMETRY, profile="q8_0/turbo4").size == 4848
    assert budget_from(GEOMETRY, bpv=3.5) == Budget("3.5 bpv", 2688)
    assert budget_from(GEOMETRY, bytes_per_token=3000).size == 3000
    assert budget_from(GEOMETRY, memory=2**31, context=131072) == Budget("2.00 GiB at 131,072 tokens", 2**31, 131072)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bpv": 4.0, "profile": "turbo4"}, "one budget"),
        ({"memory": 2**31}, "go together"),
        ({"context": 4096}, "go together"),
        ({"bpv": 0.0}, "bits per value"),
        ({"bytes_per_token": 0}, "at least 1"),
        ({"profile": "turbo9"}, "turbo9"),
    ],
)
def test_mistakes(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        budget_from(GEOMETRY, **given)  # type: ignore[arg-type]
