"""How much each layer's K and V matter, two ways: from gradients for all at once, and by changing one cell at a time.

A cell is (layer, side, type). Both ways give the KLD that the change of one cell adds at the operating point, so that they
can be compared by rank (Spearman) within each type: measured numbers are right but noisy, predicted ones have hardly any
noise and a bias (`damage` joins them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratakv.evidence.tuning import cell_json
from stratakv.measure.divergence import Floats
from stratakv.measure.intervals import mean_interval
from stratakv.profile.spans import Spans
from stratakv.tune.gradient import passes_of
from stratakv.tune.measurer import Measurer, Pairs
from stratakv.tune.memory import check_gradient_memory

SIDES = ("k", "v")


@dataclass(frozen=True)
class Sensitivity:
    """Cells by [.., kv_layers, 2 (K, V), types].

    damage: predicted KLD of each context when the cell alone is stored as the type. added: KLD that changing the cell adds at
    the operating point in each context, nan for types that were not measured; base: the operating point's own KLD there.
    None when nothing was measured.
    """

    types: tuple[str, ...]
    operating: Pairs
    damage: Floats
    added: Floats | None = None
    base: Floats | None = None

    @property
    def predicted(self) -> Floats:
        """Added KLD at the operating point by gradients, [kv_layers, 2, types]."""
        mean = self.damage.mean(axis=0)
        stored = np.array(
            [[mean[i, side, self.types.index(pair[side])] for side in (0, 1)] for i, pair in enumerate(self.operating)]
        )
        return np.asarray(mean - stored[..., None])

    def cell(self, ordinal: int, side: int, name: str) -> Pairs:
        """The operating point with one cell changed."""
        pairs = list(self.operating)
        pair = list(pairs[ordinal])
        pair[side] = name
        pairs[ordinal] = pair[0], pair[1]
        return tuple(pairs)


def by_gradient(
    measurer: Measurer,
    types: Sequence[str],
    operating: Pairs,
    contexts: int,
    draws: int,
    spans: Sequence[Spans],
    stage: str = "gradient",
) -> dict[Spans, Sensitivity]:
    """All cells under each of `spans`, from `contexts` forward passes and `draws` backward passes of each.

    UserError where memory is short.
    """
    tokens = measurer.ids.shape[1]
    check_gradient_memory(measurer.loaded, tokens, draws, any(spans))
    with measurer.stage(stage, contexts * passes_of(draws)):
        damage = measurer.span_gradients(tuple(types), range(contexts), draws, spans)
    return {each: Sensitivity(tuple(types), operating, damage[:, i]) for i, each in enumerate(spans)}


def by_ablation(measurer: Measurer, found: Sensitivity, types: Sequence[str], batches: Sequence[int]) -> Sensitivity:
    """The same with every cell of `types` measured, one changed at a time around the operating point."""
    layers = range(len(found.operating))
    cells = [
        (i, side, found.types.index(name))
        for i in layers
        for side in (0, 1)
        for name in types
        if name != found.operating[i][side]
    ]
    with measurer.stage("ablation", len(batches) * measurer.batch * (2 + len(cells) / 2)):
        base = measurer.klds([found.operating], batches, found.operating)[0]
        profiles = [found.cell(i, side, found.types[column]) for i, side, column in cells]
        klds = measurer.klds(profiles, batches, found.operating)
    added = np.full((len(base), len(found.operating), 2, len(found.types)), np.nan)
    for (i, side, column), row in zip(cells, klds, strict=True):
        added[:, i, side, column] = row - base
    for i in layers:
        for side in (0, 1):
            added[:, i, side, found.types.index(found.operating[i][side])] = 0.0
    return Sensitivity(found.types, found.operating, found.damage, added, base)


def split_half(found: Sensitivity) -> dict[str, Any]:
    """Spearman between the cells of two halves of the contexts, of the measured numbers, or the predicted without them.

    by_type: across layers and sides within a type. spearman: their mean. gradient: the same of the predicted numbers.
    """
    halves = {"gradient": found.damage} | ({} if found.added is None else {"ablation": found.added})
    correlations = {
        name: _by_type(found, values[0::2].mean(axis=0), values[1::2].mean(axis=0))
        for name, values in halves.items()
        if len(values) > 1
    }
    shown = correlations.get("ablation") or correlations.get("gradient") or {}
    return {
        "spearman": float(np.mean(list(shown.values()))) if shown else None,
        "by_type": shown,
        "gradient": correlations.get("gradient", {}),
    }


def agreement(found: Sensitivity) -> dict[str, Any]:
    """Spearman of predicted with measured cells across layers and sides, within each measured type and over all of them."""
    if found.added is None:
        return {"by_type": {}, "all": None}
    added = found.added.mean(axis=0)
    seen = np.isfinite(added) & (found.predicted != 0)
    return {
        "by_type": _by_type(found, found.predicted, added),
        "all": _spearman(found.predicted[seen], added[seen]),
    }


def cells_json(found: Sensitivity) -> list[dict[str, Any]]:
    """Every cell with both numbers. kld: measured added KLD (null where it was not measured). gradient: predicted."""
    rows = []
    for i in range(len(found.operating)):
        for side, letter in enumerate(SIDES):
            for column, name in enumerate(found.types):
                kld = interval = None
                if found.added is not None and np.isfinite(found.added[:, i, side, column]).all():
                    values = found.added[:, i, side, column]
                    kld, interval = float(values.mean()), mean_interval(values)
                gradient = float(found.predicted[i, side, column])
                rows.append(cell_json(i, letter, name, kld=kld, interval=interval, gradient=gradient))
    return rows


def _by_type(found: Sensitivity, left: Floats, right: Floats) -> dict[str, float]:
    correlations = {}
    for column, name in enumerate(found.types):
        changed = np.array([[pair[side] != name for side in (0, 1)] for pair in found.operating])
        seen = changed & np.isfinite(left[:, :, column]) & np.isfinite(right[:, :, column])
        if seen.sum() >= 3 and (rank := _spearman(left[:, :, column][seen], right[:, :, column][seen])) is not None:
            correlations[name] = rank
    return correlations


def _spearman(left: Floats, right: Floats) -> float | None:
    """None where one side's numbers are all equal."""
    from scipy.stats import spearmanr

    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(spearmanr(left, right).statistic)
