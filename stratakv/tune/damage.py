"""What an assignment is expected to cost: a measured operating point, and what each layer adds with another pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stratakv.measure.divergence import Floats
from stratakv.profile.profile import Pair
from stratakv.tune.measurer import Measurer, Pairs
from stratakv.tune.sensitivity import Sensitivity, joined


@dataclass(frozen=True)
class DamageModel:
    """level: the operating point's KLD in nats. added: by KV ordinal what each pair adds to it, 0 for the operating one.
    error: standard errors of these."""

    operating: Pairs
    level: float
    added: tuple[Mapping[Pair, float], ...]
    error: tuple[Mapping[Pair, float], ...]

    def predict(self, pairs: Pairs) -> float:
        """Predicted KLD of an assignment, never below 0."""
        return max(0.0, self.level + sum(known[pair] for known, pair in zip(self.added, pairs, strict=True)))

    def damages(self) -> list[dict[Pair, float]]:
        """For the allocator: what each layer's pairs add, the level shared out, so that a choice's cost is its KLD."""
        share = self.level / len(self.added)
        return [{pair: share + value for pair, value in known.items()} for known in self.added]

    def moved(self, operating: Pairs, level: float) -> DamageModel:
        """The same expectations seen from another, measured operating point."""
        added = tuple(
            {pair: value - known[there] for pair, value in known.items()}
            for known, there in zip(self.added, operating, strict=True)
        )
        return DamageModel(operating, level, added, self.error)

    def drawn(self, rng: np.random.Generator) -> list[dict[Pair, float]]:
        """`damages`, each drawn from within its error: what the best choice would be if the truth were that."""
        return [
            {pair: value + errors[pair] * float(rng.standard_normal()) for pair, value in known.items()}
            for known, errors in zip(self.damages(), self.error, strict=True)
        ]


def damage_model(found: Sensitivity, level: float, extra: Mapping[tuple[int, Pair], float]) -> DamageModel:
    """All pairs of the sensitivity's types. level: the operating point's measured KLD. extra: measured, what a layer's pair
    adds beyond its K and its V alone; where it wasn't, the layer's (else all layers') usual share of the smaller one."""
    cells = joined(found)
    noise = _cell_errors(found, cells)
    shares = _shares(found, cells, extra)
    added, error = [], []
    for i in range(len(found.operating)):
        values: dict[Pair, float] = {}
        errors: dict[Pair, float] = {}
        for a, k in enumerate(found.types):
            for b, v in enumerate(found.types):
                alone = float(cells[i, 0, a]), float(cells[i, 1, b])
                beyond = extra.get((i, (k, v)), shares[i] * _together(*alone))
                values[k, v] = sum(alone) + beyond
                errors[k, v] = float(np.hypot(noise[i, 0, a], noise[i, 1, b]))
        values[found.operating[i]] = errors[found.operating[i]] = 0.0
        added.append(values)
        error.append(errors)
    return DamageModel(found.operating, level, tuple(added), tuple(error))


def measure_pairs(
    measurer: Measurer, found: Sensitivity, wanted: Sequence[tuple[int, Pair]], batches: Sequence[int]
) -> dict[tuple[int, Pair], float]:
    """What both sides of one layer changed together add to the KLD beyond each of them alone; all three are measured."""
    k_alone = [found.cell(i, 0, pair[0]) for i, pair in wanted]
    v_alone = [found.cell(i, 1, pair[1]) for i, pair in wanted]
    both = [(*found.operating[:i], pair, *found.operating[i + 1 :]) for i, pair in wanted]
    with measurer.stage("pairs"):
        base, *klds = measurer.klds([found.operating, *k_alone, *v_alone, *both], batches, found.operating).mean(axis=1)
    count = len(wanted)
    return {each: float(klds[2 * count + n] - klds[n] - klds[count + n] + base) for n, each in enumerate(wanted)}


def remeasured(
    measurer: Measurer, model: DamageModel, wanted: Sequence[tuple[int, Pair]], batches: Sequence[int]
) -> DamageModel:
    """The model with these pairs of single layers measured around its operating point, weighed with what was expected."""
    profiles = [(*model.operating[:i], pair, *model.operating[i + 1 :]) for i, pair in wanted]
    with measurer.stage("re-measuring"):
        base, *klds = measurer.klds([model.operating, *profiles], batches, model.operating)
    added = [dict(known) for known in model.added]
    error = [dict(known) for known in model.error]
    for (i, pair), row in zip(wanted, klds, strict=True):
        difference = row - base
        measured = float(difference.mean())
        noise = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else abs(measured)
        prior, width = added[i][pair], max(error[i][pair], 1e-12)
        weight = width**2 / (width**2 + noise**2)
        added[i][pair] = prior + weight * (measured - prior)
        error[i][pair] = noise * float(np.sqrt(weight))
    return DamageModel(model.operating, float(base.mean()), tuple(added), tuple(error))


def _together(k: float, v: float) -> float:
    """The scale of an interaction: the geometric mean of what both add, 0 where one of them lowers the KLD."""
    return float(np.sqrt(k * v)) if k > 0 and v > 0 else 0.0


def _shares(found: Sensitivity, cells: Floats, extra: Mapping[tuple[int, Pair], float]) -> list[float]:
    """By layer, the measured interactions as a share of `_together`; layers without any get the median."""
    seen: dict[int, list[tuple[float, float]]] = {}
    for (i, (k, v)), value in extra.items():
        scale = _together(float(cells[i, 0, found.types.index(k)]), float(cells[i, 1, found.types.index(v)]))
        if scale > 0:
            seen.setdefault(i, []).append((value, scale))
    own = {i: sum(value for value, _ in rows) / sum(scale for _, scale in rows) for i, rows in seen.items()}
    usual = float(np.median(list(own.values()))) if own else 0.0
    return [float(np.clip(own.get(i, usual), -0.5, 1.0)) for i in range(len(found.operating))]


def _cell_errors(found: Sensitivity, cells: Floats) -> Floats:
    """How far a cell may be off: the excess scatter that `joined` works with is near 10 %, and the gradient's own error."""
    spread = found.damage.std(axis=0, ddof=1) / np.sqrt(len(found.damage)) if len(found.damage) > 1 else 0.0
    return np.asarray(np.hypot(0.1 * np.abs(cells), spread))


def worth_measuring(
    model: DamageModel, sizes: Sequence[Mapping[Pair, int]], count: int, price: float
) -> list[tuple[int, Pair]]:
    """By layer the `count` pairs, the operating one apart, that come closest to being chosen at this price of a byte."""
    wanted = []
    for i, (known, size) in enumerate(zip(model.added, sizes, strict=True)):
        order = sorted(
            (pair for pair in size if pair != model.operating[i]), key=lambda pair: known[pair] + price * size[pair]
        )
        wanted += [(i, pair) for pair in order[:count]]
    return wanted


def restricted(model: DamageModel, types: Collection[str]) -> DamageModel:
    """Only pairs of these types, and the operating one."""
    keep = set(types)
    added, error = (
        tuple(
            {pair: value for pair, value in known.items() if set(pair) <= keep or pair == there}
            for known, there in zip(each, model.operating, strict=True)
        )
        for each in (model.added, model.error)
    )
    return DamageModel(model.operating, model.level, added, error)
