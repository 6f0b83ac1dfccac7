"""What a type costs in a layer: measured where a tuning measured it, estimated between, or only a distance in bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stratakv.evidence.tuning import damages_of
from stratakv.export.target import Costs
from stratakv.kvtypes import kv_type
from stratakv.kvtypes.blocks import BlockType
from stratakv.profile import ModelGeometry, Profile
from stratakv.profile.profile import Pair

_VECTORS = 256


@dataclass(frozen=True)
class MeasuredCosts:
    """KLD in nats that each type adds to the operating point, in each layer and side, from an evidence file's sensitivities.

    A type that was not tried gets what types of its reconstruction error cost in that layer and side, by linear interpolation
    between those that were. base: KLD of the operating point.
    """

    geometry: ModelGeometry
    cells: Mapping[tuple[int, int], tuple[tuple[float, ...], tuple[float, ...], Mapping[str, float]]]
    base: float

    pairs: tuple[Mapping[Pair, float], ...] = ()

    @classmethod
    def of(cls, evidence: Mapping[str, Any], geometry: ModelGeometry) -> MeasuredCosts | None:
        """From the tuner's table of damages; without one from its cells. None where some layer or side has neither."""
        point = evidence["sensitivity"]["operating_point"]
        k, v = point.split("/") if "/" in point else (point, point)
        tables = damages_of(evidence)
        base: float | None
        found: dict[tuple[int, int], dict[str, float]] = {}
        if tables and all((k, v) in table for table in tables):
            base = sum(table[k, v] for table in tables)
            for ordinal, table in enumerate(tables):
                found[ordinal, 0] = {a: cost - table[k, v] for (a, b), cost in table.items() if b == v}
                found[ordinal, 1] = {b: cost - table[k, v] for (a, b), cost in table.items() if a == k}
        else:
            base = next((row["kld_mean"] for row in evidence["rows"] if row["name"] == evidence["reference"]), None)
            for cell in evidence["sensitivity"]["cells"]:
                if cell["kld"] is not None:
                    found.setdefault((cell["ordinal"], "kv".index(cell["side"])), {})[cell["type"]] = float(cell["kld"])
        cells = {}
        for ordinal, layer in enumerate(geometry.kv_layers):
            for side, name in enumerate((k, v)):
                known = found.get((ordinal, side))
                if not known or base is None:
                    return None
                known.setdefault(name, 0.0)
                points = sorted((relative_error(each, layer.head_dim[side]), cost) for each, cost in known.items())
                cells[ordinal, side] = (*_with_start(points), known)
        return cls(geometry, cells, float(base or 0), tables)

    def __call__(self, ordinal: int, side: int, name: str) -> float:
        """KLD added by this type there."""
        errors, costs, known = self.cells[ordinal, side]
        if name in known:
            return known[name]
        return float(np.interp(relative_error(name, self.geometry.kv_layers[ordinal].head_dim[side]), errors, costs))

    def total(self, pairs: tuple[Pair, ...]) -> float:
        """Predicted KLD of pairs by KV ordinal, in nats, with what K and V of a layer do together where that is known."""
        if self.pairs and all(pair in table for pair, table in zip(pairs, self.pairs, strict=True)):
            return max(0.0, sum(table[pair] for pair, table in zip(pairs, self.pairs, strict=True)))
        return max(
            0.0, self.base + sum(self(i, side, name) for i, pair in enumerate(pairs) for side, name in enumerate(pair))
        )

    def estimated(self, pairs: tuple[Pair, ...]) -> list[str]:
        """The types among the pairs that were not measured everywhere they are used."""
        names = {
            name
            for ordinal, pair in enumerate(pairs)
            for side, name in enumerate(pair)
            if name not in self.cells[ordinal, side][2]
        }
        return sorted(names)


def distance_costs(profile: Profile) -> Costs:
    """Without evidence: bits per value that a type lies away from the profile's own, fewer bits counting twice."""

    def cost(ordinal: int, side: int, name: str) -> float:
        head_dim = profile.geometry.kv_layers[ordinal].head_dim[side]
        own, other = (kv_type(each).bits_per_value(head_dim) for each in (profile.pairs[ordinal][side], name))
        away = other - own if other > own else 2 * (own - other)
        plain = isinstance(kv_type(name), BlockType)  # at equal bits the rotated form, which is hardly ever worse
        return away + (1e-6 if plain else 0.0)

    return cost


@lru_cache(maxsize=512)
def relative_error(name: str, head_dim: int) -> float:
    """Mean squared error of encode and decode over the mean square, on random directions."""
    x = torch.randn(_VECTORS, head_dim, generator=torch.Generator().manual_seed(0))
    y = kv_type(name).decode(kv_type(name).encode(x), head_dim=head_dim)
    return float((x - y).square().sum() / x.square().sum())


def _with_start(points: list[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Errors and costs by rising error, from an error of 0 on: the line through the two finest types, never rising towards it."""
    if len(points) > 1 and points[1][0] > points[0][0]:
        (e1, c1), (e2, c2) = points[:2]
        points = [(0.0, min(c1, c1 - e1 * (c2 - c1) / (e2 - e1))), *points]
    return tuple(error for error, _ in points), tuple(cost for _, cost in points)
