"""What an assignment is expected to cost: the gradients' predictions, corrected by all that was measured whole.

Gradients have hardly any noise, and a bias: K may matter less and V more than they say, a coarse type more than a fine one,
K and V of one layer together more than each alone. The corrections are coefficients of a linear model with small prior
variances. Every measured assignment, however many of its cells differ from the operating point, says something about all of
them, so few measurements go far: the factorial design's advantage over one change at a time (Box, Hunter, Hunter 2005,
"Statistics for Experimenters", chapter 5). How far the measurements are followed is found from themselves, by marginal
likelihood (empirical Bayes; Rasmussen and Williams 2006, section 2.2 and chapter 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stratakv.measure.divergence import Floats
from stratakv.profile.profile import Pair
from stratakv.tune.measurer import Pairs

_TOUCHED = 6  # coefficients that one layer's pair has a part in
_USUAL = np.array(
    [0.15, 0.1, 0.15, 0.15, 0.1]
)  # prior standard deviations by group, relative; the last one is the noise's
_DECADES = 0.5  # how far, as a standard deviation of log10, those may lie from the usual


@dataclass(frozen=True)
class Measured:
    """An assignment's KLD relative to the operating point's on the same contexts, minus 1; and how many contexts."""

    pairs: Pairs
    change: float
    contexts: int


@dataclass(frozen=True)
class Terms:
    """The linear model's terms. damage: predicted KLD by [kv_layers, 2 (K, V), types], nats, of each cell alone.

    Coefficients: a correction of every layer's side, of every type's side, of what K and V of a layer do together, and of
    that in all layers. `base`, the prediction itself, and `values` are relative to the operating point.
    """

    types: tuple[str, ...]
    operating: Pairs
    damage: Floats

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """By coefficient, the group whose prior variance it has."""
        layers, types = len(self.operating), len(self.types)
        return np.repeat([0, 1, 2, 3], [2 * layers, 2 * types, layers, 1])

    @cached_property
    def base(self) -> Floats:
        """[kv_layers, K types, V types]: predicted KLD that the pair adds, nats."""
        return np.asarray(self.values[..., 0] + self.values[..., 1])

    @cached_property
    def values(self) -> Floats:
        """[kv_layers, K types, V types, _TOUCHED]."""
        layers = np.arange(len(self.operating))
        there = np.array([[self.types.index(name) for name in pair] for pair in self.operating])
        k, v = self.damage[:, 0], self.damage[:, 1]
        shape = (len(layers), len(self.types), len(self.types))
        more_k = np.broadcast_to((k - k[layers, there[:, 0], None])[:, :, None], shape)
        more_v = np.broadcast_to((v - v[layers, there[:, 1], None])[:, None, :], shape)
        together = np.sqrt(k[:, :, None] * v[:, None, :])
        together = together - together[layers, there[:, 0], there[:, 1], None, None]
        return np.stack([more_k, more_v, more_k, more_v, together, together], axis=-1)

    @cached_property
    def index(self) -> npt.NDArray[np.int64]:
        """The coefficients that `values` belong to."""
        layers, types = len(self.operating), len(self.types)
        found = np.empty((layers, types, types, _TOUCHED), dtype=np.int64)
        layer = np.arange(layers)[:, None, None]
        name = np.arange(types)
        found[..., 0], found[..., 1] = 2 * layer, 2 * layer + 1
        found[..., 2] = 2 * layers + name[:, None]
        found[..., 3] = 2 * layers + types + name
        found[..., 4] = 2 * (layers + types) + layer
        found[..., 5] = len(self.groups) - 1
        return found

    @cached_property
    def level(self) -> float:
        """Predicted KLD of the operating point, nats."""
        layers, k, v = self.at(self.operating)
        return float(self.damage[layers, 0, k].sum() + self.damage[layers, 1, v].sum())

    def row(self, pairs: Pairs) -> tuple[float, float, Floats]:
        """An assignment's prediction, the sum of its absolute parts (both nats), and its terms by coefficient."""
        at = self.at(pairs)
        values, terms = self.values[at], np.zeros(len(self.groups))
        np.add.at(terms, self.index[at], values)
        return float(self.base[at].sum()), float(np.abs(values[:, :2]).sum()), terms

    def at(self, pairs: Pairs) -> tuple[npt.NDArray[np.int64], ...]:
        """Indices of the assignment's pairs."""
        names = np.array([[self.types.index(name) for name in pair] for pair in pairs])
        return np.arange(len(pairs)), names[:, 0], names[:, 1]


@dataclass(frozen=True)
class DamageModel:
    """level: KLD at `operating`, measured, nats. mean, covariance: of the coefficients."""

    terms: Terms
    operating: Pairs
    level: float
    mean: Floats
    covariance: Floats

    def predict(self, pairs: Pairs) -> float:
        """Predicted KLD of an assignment, never below 0."""
        added = self._added(self.mean)
        return max(
            0.0, self.level + float(added[self.terms.at(pairs)].sum() - added[self.terms.at(self.operating)].sum())
        )

    def damages(self) -> list[dict[Pair, float]]:
        """For the allocator: what each layer's pairs add, the level shared out, so that a choice's cost is its KLD."""
        return self._table(self.mean)

    def drawn(self, rng: np.random.Generator) -> list[dict[Pair, float]]:
        """`damages` if the truth were another one of those that the measurements leave possible."""
        return self._table(rng.multivariate_normal(self.mean, self.covariance, method="eigh"))

    def moved(self, operating: Pairs, level: float) -> DamageModel:
        """The same expectations with another assignment's KLD as the measured one."""
        return replace(self, operating=operating, level=level)

    def _added(self, coefficients: Floats) -> Floats:
        return np.asarray(self.terms.base + (self.terms.values * coefficients[self.terms.index]).sum(-1))

    def _table(self, coefficients: Floats) -> list[dict[Pair, float]]:
        added, types = self._added(coefficients), self.terms.types
        share = (self.level - float(added[self.terms.at(self.operating)].sum())) / len(added)
        return [
            {(k, v): share + float(layer[a, b]) for a, k in enumerate(types) for b, v in enumerate(types)}
            for layer in added
        ]


def fitted(terms: Terms, level: float, rows: Sequence[Measured]) -> DamageModel:
    """The model that the rows lead to; without any, the gradients' predictions with their usual uncertainty.

    level: the operating point's KLD, nats.
    """
    usual = _USUAL[:-1][terms.groups] ** 2
    if not rows or level <= 0:
        return DamageModel(terms, terms.operating, level, np.zeros(len(usual)), np.diag(usual))
    design = _Design(terms, level, rows)
    return design.posterior(design.scales())


def cross_validated(terms: Terms, level: float, rows: Sequence[Measured], of: Sequence[int], folds: int = 5) -> Floats:
    """Predicted changes of the rows `of`, each by a fit that didn't see it."""
    found = np.zeros(len(of))
    if not of or level <= 0:
        return found
    scales = _Design(terms, level, rows).scales()
    for fold in range(min(folds, len(of))):
        hidden = {of[n] for n in range(fold, len(of), folds)}
        seen = [row for n, row in enumerate(rows) if n not in hidden]
        model = _Design(terms, level, seen).posterior(scales) if seen else fitted(terms, level, ())
        for n in range(fold, len(of), folds):
            found[n] = model.predict(rows[of[n]].pairs) / level - 1
    return found


class _Design:
    """The rows as a linear model, in units of the level.

    A change of cells adds twice its product with all other errors to a token's KLD: nothing on average, but noise whose
    variance grows with the size of the change and falls with the number of contexts.
    """

    def __init__(self, terms: Terms, level: float, rows: Sequence[Measured]) -> None:
        self.terms, self.level = terms, level
        base, size, features = zip(*(terms.row(row.pairs) for row in rows), strict=True)
        self.features = np.array(features) / level
        self.left = np.array([row.change for row in rows]) - np.array(base) / level
        self.noise = np.maximum(np.array(size) / level, 1e-6) / np.array([row.contexts for row in rows])
        parts = [self.features[:, terms.groups == group] for group in range(4)]
        self.grams = [part @ part.T for part in parts]

    def scales(self) -> Floats:
        """Standard deviations by group, and of the noise, that make the rows most likely."""
        from scipy.optimize import minimize

        start = np.log10(_USUAL)
        found = minimize(
            lambda x: self._cost(10**x) + 0.5 * float((((x - start) / _DECADES) ** 2).sum()),
            start,
            method="Nelder-Mead",
            options={"maxiter": 300, "xatol": 0.02, "fatol": 0.02},
        )
        return np.asarray(10**found.x)

    def _total(self, scales: Floats) -> Floats:
        total = np.diag(scales[-1] ** 2 * self.noise)
        for gram, scale in zip(self.grams, scales[:-1], strict=True):
            total = total + scale**2 * gram
        return total

    def _cost(self, scales: Floats) -> float:
        lower = np.linalg.cholesky(self._total(scales))
        whitened = np.linalg.solve(lower, self.left)
        return float(np.log(np.diag(lower)).sum() + 0.5 * whitened @ whitened)

    def posterior(self, scales: Floats) -> DamageModel:
        prior = scales[:-1][self.terms.groups] ** 2
        gain = np.linalg.solve(self._total(scales), self.features * prior).T
        covariance = np.diag(prior) - gain @ (self.features * prior)
        mean = np.asarray(gain @ self.left)
        return DamageModel(
            self.terms, self.terms.operating, self.level, mean, np.asarray((covariance + covariance.T) / 2)
        )
