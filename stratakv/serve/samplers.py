"""llama.cpp's samplers: how a request sets them, and one function each, over the tokens that may still come.

Formulas are llama.cpp's, computed in float64. Tokens whose logit is -inf stay where they stay in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratakv.errors import UserError

MAX_LOGPROBS = 20
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""llama.cpp's samplers in its own order."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn; llama.cpp's meanings, defaults and order. temperature 0: the most likely token.

    repeat_last_n, dry_penalty_last_n: tokens that the three penalties, and DRY, look at, -1: all, 0: none. Off are: typical_p 1,
    top_n_sigma 0 or less, xtc_probability 0, xtc_threshold above 0.5, dry_multiplier 0, dynatemp_range 0. samplers: which ones
    run, in this order; what is left out is off, temperature too. seed None: another draw each time. logit_bias: added to a
    token's logit; -inf bans it. logprobs None: none wanted; 0 to 20: that many alternatives beside each token.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    samplers: tuple[str, ...] = SAMPLERS
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError for what can't be meant."""
        checks = [
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more, and finite"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("repeat_penalty", self.repeat_penalty, 0 < self.repeat_penalty < math.inf, "above 0, and finite"),
            ("repeat_last_n", self.repeat_last_n, self.repeat_last_n >= -1, "-1 (all), 0 (none) or more"),
            ("presence_penalty", self.presence_penalty, math.isfinite(self.presence_penalty), "finite"),
            ("frequency_penalty", self.frequency_penalty, math.isfinite(self.frequency_penalty), "finite"),
            ("typical_p", self.typical_p, 0 < self.typical_p <= 1, "above 0, at most 1"),
            ("top_n_sigma", self.top_n_sigma, math.isfinite(self.top_n_sigma), "finite"),
            ("xtc_probability", self.xtc_probability, 0 <= self.xtc_probability <= 1, "0 to 1"),
            ("xtc_threshold", self.xtc_threshold, 0 <= self.xtc_threshold <= 1, "0 to 1"),
            ("dynatemp_range", self.dynatemp_range, 0 <= self.dynatemp_range < math.inf, "0 or more, and finite"),
            (
                "dynatemp_exponent",
                self.dynatemp_exponent,
                0 <= self.dynatemp_exponent < math.inf,
                "0 or more, and finite",
            ),
            ("dry_multiplier", self.dry_multiplier, 0 <= self.dry_multiplier < math.inf, "0 or more, and finite"),
            ("dry_base", self.dry_base, 1 <= self.dry_base < math.inf, "1 or more, and finite"),
            ("dry_allowed_length", self.dry_allowed_length, self.dry_allowed_length >= 0, "0 or more"),
            (
                "dry_penalty_last_n",
                self.dry_penalty_last_n,
                self.dry_penalty_last_n >= -1,
                "-1 (all), 0 (none) or more",
            ),
            ("samplers", self.samplers, set(self.samplers) <= set(SAMPLERS), f"some of {', '.join(SAMPLERS)}"),
            ("seed", self.seed, self.seed is None or 0 <= self.seed < 2**64, "0 or more, below 2^64, or none"),
            (
                "logprobs",
                self.logprobs,
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                "0 to 20, or none",
            ),
        ]
        for name, value, good, allowed in checks:
            if not good:
                raise UserError(f"{name} {value}: it must be {allowed}")
        for token, bias in self.logit_bias.items():
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise UserError(f"logit_bias {token}: {bias}: token ids are 0 or more, biases finite or -inf")

    def active(self, sampler: str) -> bool:
        """Whether a sampler changes anything with these settings."""
        penalties = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return {
            "penalties": self.repeat_last_n != 0 and penalties != (1.0, 0.0, 0.0),
            "dry": self.dry_multiplier > 0 and self.dry_penalty_last_n != 0,
            "top_n_sigma": self.top_n_sigma > 0,
            "top_k": self.top_k > 0,
            "typ_p": self.typical_p < 1,
            "top_p": self.top_p < 1,
            "min_p": self.min_p > 0,
            "xtc": self.xtc_probability > 0 and self.xtc_threshold <= 0.5,
            "temperature": self.temperature != 1 or self.dynatemp_range > 0,
        }[sampler]


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
    logits = tokens.logits.astype(np.float64)
    with np.errstate(over="ignore"):  # the best one stays 0, whatever the others become
        return Candidates(tokens.ids, (logits - logits.max()) / degrees, tokens.ordered)


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
