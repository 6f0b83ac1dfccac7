"""llama.cpp's samplers, one function each, over the tokens that may still come.

Formulas are llama.cpp's, computed in float64. Tokens whose logit is -inf stay where they stay in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Candidates:
    """Tokens that may come next. ids: int64 [n]. logits: float32 or float64 [n]. ordered: best first."""

    ids: NDArray[np.int64]
    logits: NDArray[Any]
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def best_first(self) -> Candidates:
        """The same tokens, best first."""
        return self if self.ordered else top_k(self, len(self))

    def kept(self, which: Any) -> Candidates:
        """Some of them: a slice, or a boolean array; the order stays."""
        return Candidates(self.ids[which], self.logits[which], self.ordered)

    def probabilities(self) -> NDArray[np.float64]:
        """float64 [n], their softmax."""
        logits = self.logits.astype(np.float64)
        weights: NDArray[np.float64] = np.exp(logits - logits.max())
        weights /= weights.sum()
        return weights


def top_k(tokens: Candidates, k: int) -> Candidates:
    """The k best, best first. All for 0."""
    if tokens.ordered:
        return tokens.kept(slice(k or None))
    rest = len(tokens) - min(k or len(tokens), len(tokens))
    places = np.argpartition(tokens.logits, rest)[rest:] if rest else np.arange(len(tokens))
    places = places[np.argsort(-tokens.logits[places], kind="stable")]
    return Candidates(tokens.ids[places], tokens.logits[places].astype(np.float64), True)


def top_p(tokens: Candidates, p: float) -> Candidates:
    """The best ones that together have at least the probability p (Holtzman et al., 2019)."""
    tokens = tokens.best_first()
    return tokens.kept(slice(int(np.searchsorted(np.cumsum(tokens.probabilities()), p)) + 1))


def min_p(tokens: Candidates, p: float) -> Candidates:
    """Those that are at least p times as likely as the best one."""
    return tokens.kept(tokens.logits >= tokens.logits.max() + np.log(p))


def typical_p(tokens: Candidates, p: float) -> Candidates:
    """Those whose surprise is nearest to the expected one, until they have the probability p together (Meister et al., 2022)."""
    shares = tokens.best_first().probabilities()
    surprise = -np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    nearest = np.argsort(np.abs(surprise - (shares * surprise).sum()), kind="stable")
    beyond = np.flatnonzero(np.cumsum(shares[nearest]) > p)
    kept = np.zeros(len(shares), dtype=bool)
    kept[nearest[: int(beyond[0]) + 1 if len(beyond) else None]] = True
    return tokens.best_first().kept(kept)


def top_n_sigma(tokens: Candidates, n: float) -> Candidates:
    """Those whose logit is at most n standard deviations below the best one (Tang et al., 2024)."""
    if len(tokens) < 2:
        return tokens
    logits = tokens.logits.astype(np.float64)
    least = logits.max() - n * logits[np.isfinite(logits)].std()
    return Candidates(tokens.ids, np.where(logits < least, -np.inf, logits), tokens.ordered)


def xtc(tokens: Candidates, threshold: float) -> Candidates:
    """Without all but the least likely of those with at least this probability ("exclude top choices")."""
    tokens = tokens.best_first()
    above = int((tokens.probabilities() >= threshold).sum())
    return tokens.kept(slice(max(above - 1, 0), None))


def temperature(tokens: Candidates, degrees: float) -> Candidates:
    """Logits divided by the temperature; 0: only the best one."""
    if degrees <= 0:
        best = int(np.argmax(tokens.logits))
        return tokens.kept(slice(best, best + 1))
    return Candidates(tokens.ids, tokens.logits.astype(np.float64) / degrees, tokens.ordered)


def dynamic_temperature(tokens: Candidates, degrees: float, spread: float, exponent: float) -> Candidates:
    """A temperature from degrees - spread to degrees + spread, the higher the less certain the model is (its entropy)."""
    if len(tokens) < 2:
        return tokens
    shares = tokens.probabilities()
    some = shares[shares > 0]
    certainty = float(-(some * np.log(some)).sum() / np.log(len(tokens)))
    lowest = max(0.0, degrees - spread)
    return temperature(tokens, lowest + (degrees + spread - lowest) * max(certainty, 0.0) ** exponent)


# By the sampler's name, those that one number says all about: the function, and the parameter that is its number
ONE_NUMBER: dict[str, tuple[Callable[[Candidates, Any], Candidates], str]] = {
    "top_k": (top_k, "top_k"),
    "top_p": (top_p, "top_p"),
    "min_p": (min_p, "min_p"),
    "typ_p": (typical_p, "typical_p"),
    "top_n_sigma": (top_n_sigma, "top_n_sigma"),
}
