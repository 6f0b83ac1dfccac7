"""Which types a tuning tries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type, type_names
from stratakv.measure.divergence import Floats
from stratakv.profile import ModelGeometry
from stratakv.profile.profile import Pair
from stratakv.profile.storage import side_bytes
from stratakv.tune.measurer import Pairs
from stratakv.tune.problem import Problem
from stratakv.tune.sensitivity import Sensitivity

LEFT_OUT = ("f32", "bf16")  # f32 is twice f16 for nothing; bf16 takes f16's bytes and is coarser
_NEAR_HULL = 0.7  # of log damage: twice what a mix of its neighbours would do


def allowed_types(geometry: ModelGeometry, given: Sequence[str] | None) -> tuple[str, ...]:
    """The types that every KV layer can store. Raises UserError for a given one that isn't among them."""
    dims = {dim for layer in geometry.kv_layers for dim in layer.head_dim}
    if given is not None:
        for name in given:
            for dim in dims:
                kv_type(name).check(dim)
        return tuple(dict.fromkeys(given))
    return tuple(name for name in type_names() if name not in LEFT_OUT and all(_can_store(name, dim) for dim in dims))


def useful_types(geometry: ModelGeometry, types: Sequence[str], damage: Floats, start: Pairs) -> tuple[str, ...]:
    """Undominated types near the lower hull of bytes and log damage, over all layers, for K or V; and the operating ones.
    A mix of its neighbours beats a type far above the hull, which would only be chosen by mistake."""
    kept = {name for pair in start for name in pair}
    for side in (0, 1):
        sizes = [sum(side_bytes(kv_type(name), layer, side) for layer in geometry.kv_layers) for name in types]
        total = np.log(np.maximum(damage[:, side].sum(axis=0), 1e-30)).tolist()
        points = list(zip(sizes, total, strict=True))
        kept |= {
            name
            for name, (size, least) in zip(types, points, strict=True)
            if least <= _hull(points, size) + _NEAR_HULL
            and not any(a <= size and b <= least and (a, b) != (size, least) for a, b in points)
        }
    return tuple(name for name in types if name in kept)


def types_to_ablate(
    problem: Problem, found: Sensitivity, predicted: Sequence[dict[Pair, float]], count: int
) -> list[str]:
    """The types that the predicted solution uses most, without one that K and V already have at the operating point."""
    solved = problem.solve(predicted).pairs
    uses = {name: sum(pair.count(name) for pair in solved) for name in found.types}
    for k, v in set(found.operating):
        if k == v:
            uses.pop(k, None)
    return sorted(uses, key=lambda name: -uses[name])[:count]


def _hull(points: Sequence[tuple[int, float]], size: int) -> float:
    """The least that a mix of two points, or one, has at this size."""
    left = [point for point in points if point[0] <= size]
    right = [point for point in points if point[0] >= size]
    return min(
        a[1] if a[0] == b[0] else a[1] + (b[1] - a[1]) * (size - a[0]) / (b[0] - a[0]) for a in left for b in right
    )


def _can_store(name: str, dim: int) -> bool:
    try:
        kv_type(name).check(dim)
    except UserError:
        return False
    return True
