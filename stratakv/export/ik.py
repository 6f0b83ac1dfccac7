"""ik_llama.cpp: a type for the first N, the last N and all other layers, K and V apart, counted over all layers of the model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt

from stratakv.export.target import Command, Costs, NotExpressible, Runtime, budget, in_layers, storable
from stratakv.kvtypes import kv_type
from stratakv.kvtypes.rotated import RotatedType
from stratakv.profile import ModelGeometry, Profile
from stratakv.profile.profile import Pair
from stratakv.profile.storage import side_bytes

_PLAIN = ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_ROTATED = ("f16", "bf16", "q8_0_rot", "q5_1_rot", "q5_0_rot", "q4_1_rot", "q4_0_rot")
_MOST_RUNS = 3


class Ik(Runtime):
    """Each side is at most three runs of layers; with its Hadamard option a whole side is rotated, without it none of it."""

    title = "ik_llama.cpp"
    types = tuple(dict.fromkeys(_PLAIN + _ROTATED))

    def _command(self, profile: Profile, model: str) -> Command:
        """-ctk, -ctk-first, -ctk-last, the same for V, and -khad, -vhad for the rotated types."""
        self._check_types(profile)
        words = ["llama-server", "-m", model]
        for side, letter in enumerate("kv"):
            words += _side([pair[side] for pair in profile.pairs], letter, profile.geometry)
        notes = [
            "V in a quantized type needs flash attention, which is on by default in current builds (-fa in older ones)"
        ]
        if len(profile.geometry.layers) != len(profile.geometry.kv_layers):
            notes.append(
                "-first and -last count all layers of the model, those without a cache included; taken into account here"
            )
        return Command(shlex.join(words), tuple(notes))

    def _nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """Exact under additive costs: all runs of all types for each side, then the best two sides together."""
        geometry = profile.geometry
        fronts = [_sides_front(geometry, side, costs) for side in (0, 1)]
        k, v = fronts
        room = budget(profile) - k.sizes
        partner = np.searchsorted(v.sizes, room, side="right") - 1
        total = np.where(partner >= 0, k.costs + v.costs[np.maximum(partner, 0)], np.inf)
        best = int(np.argmin(total))
        chosen = (best, int(partner[best])) if np.isfinite(total[best]) else (0, 0)
        sides = [front.types(index) for front, index in zip(fronts, chosen, strict=True)]
        return tuple(zip(*sides, strict=True))


TARGET = Ik()


@dataclass(frozen=True)
class _Front:
    """Undominated assignments of one side by rising size. runs: [n, 5], first type, middle, last, end of first, start of last."""

    sizes: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]
    runs: npt.NDArray[np.int64]
    names: Sequence[Sequence[str]]  # the types that a row's first column 5 points at
    layers: int

    def types(self, index: int) -> list[str]:
        first, middle, last, end, start, family = (int(each) for each in self.runs[index])
        names = self.names[family]
        return [names[first]] * end + [names[middle]] * (start - end) + [names[last]] * (self.layers - start)


def _sides_front(geometry: ModelGeometry, side: Literal[0, 1], costs: Costs) -> _Front:
    layers = geometry.kv_layers
    families = [[name for name in storable(names, geometry) if name != "bf16"] for names in (_PLAIN, _ROTATED)]
    found = []
    for family, names in enumerate(families):
        size = _sums([[side_bytes(kv_type(name), layer, side) for layer in layers] for name in names])
        cost = _sums([[costs(ordinal, side, name) for ordinal in range(len(layers))] for name in names])
        end, start = np.triu_indices(len(layers) + 1)
        for first in range(len(names)):
            for middle in range(len(names)):
                for last in range(len(names)):
                    columns = [
                        each[first][end] + each[middle][start] - each[middle][end] + each[last][-1] - each[last][start]
                        for each in (size, cost)
                    ]
                    fixed = [np.full(len(end), each) for each in (first, middle, last)]
                    found.append(
                        (columns[0], columns[1], np.stack([*fixed, end, start, np.full(len(end), family)], axis=1))
                    )
    sizes = np.concatenate([each[0] for each in found]).astype(np.int64)
    total = np.concatenate([each[1] for each in found])
    runs = np.concatenate([each[2] for each in found])
    order = np.lexsort((total, sizes))
    before = np.minimum.accumulate(np.concatenate(([np.inf], total[order][:-1])))
    kept = order[total[order] < before]
    return _Front(sizes[kept], total[kept], runs[kept], families, len(layers))


def _sums(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """[types, layers + 1]: what the first 0, 1, 2 ... layers take together."""
    values = np.asarray(rows, dtype=np.float64)
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)


def _side(names: list[str], letter: str, geometry: ModelGeometry) -> list[str]:
    """The options of one side."""
    runs = [(name, len(list(group))) for name, group in groupby(names)]
    side = letter.upper()
    if len(runs) > _MOST_RUNS:
        found: dict[str, list[int]] = {}
        for ordinal, name in enumerate(names):
            found.setdefault(name, []).append(ordinal)
        raise NotExpressible(
            f"of {side} it can set the first N, the last N and the rest, {len(runs)} runs are asked for: {in_layers(found)}"
        )
    quantized = [name for name in names if name not in ("f16", "bf16")]
    rotated = [name for name in quantized if isinstance(kv_type(name), RotatedType)]
    if rotated and len(rotated) < len(quantized):
        mixed = ", ".join(dict.fromkeys(quantized))
        raise NotExpressible(
            f"-{letter}had rotates all of {side} or nothing, rotated and plain types are mixed: {mixed}"
        )
    stock = [(_stored(name), count) for name, count in runs]
    raw = [layer.layer for layer in geometry.kv_layers]
    rest = stock[0] if len(stock) == 1 else stock[1]
    words = [f"-ct{letter}", rest[0]]
    if len(stock) > 1:
        words += [f"-ct{letter}-first", f"{stock[0][0]},{raw[stock[0][1]]}"]
    if len(stock) > 2:
        start = raw[stock[0][1] + stock[1][1]]
        words += [f"-ct{letter}-last", f"{stock[2][0]},{len(geometry.layers) - start}"]
    return words + ([f"-{letter}had"] if rotated else [])


def _stored(name: str) -> str:
    """The stock type that a rotated one is stored as; any other is itself."""
    type_ = kv_type(name)
    return type_.stored.name if isinstance(type_, RotatedType) else name
