"""What a tuned profile has to beat at its own bytes: uniform pairs, modes, layer rules, permutations of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np

from stratakv.errors import UserError
from stratakv.profile import LayerStorage, ModelGeometry, Profile, Spans, resolve
from stratakv.profile.modes import MODES
from stratakv.profile.presets import PRESETS
from stratakv.profile.profile import Pair, ordinals_text, pair_text
from stratakv.profile.spread import LayerSpans, fitted
from stratakv.tune.options import size_of

Family = Literal["tuned", "uniform", "mode", "rule", "permutation", "bare"]

TOLERANCE = 0.005
TURBO = ("turbo2", "turbo3", "turbo4", "turbo5", "turbo6", "turbo8")
TRELLIS = ("tcq2", "tcq3", "tcq4", "tcq5", "tcq6")
_ALWAYS = ("q4_0_rot", "q8_0/turbo4")  # what users of llama.cpp have today, at its own bytes
_NEAR, _FAR = 0.97, (0.7, 1.3)
_RULES = ("first and last", "first", "last")


def baselines(tuned: Profile, reference: Profile, permutations: int, seed: int = 0) -> list[tuple[Family, Profile]]:
    """Every baseline once, the tuned profile and the reference first.

    Uniform pairs near the same bytes, or the largest below them, the one that the tuning predicted to be best, and a few
    around; the fork's modes and our presets at their own bytes; first-N, last-N and both rules adjusted to the tuned profile's
    bytes; permutations among layers of equal geometry. A profile with spans is compared with others that have the same (in
    every layer those of the layer that has most), and with itself ("bare") and the reference without.
    """
    geometry = tuned.geometry
    wish = wish_of(tuned)
    found: dict[tuple[LayerStorage, ...], tuple[Family, Profile]] = {tuned.storages: ("tuned", tuned)}
    candidates: Iterator[tuple[Family, Profile]] = iter(
        [
            ("uniform", reference),
            *(("uniform", each) for each in _predicted(tuned)),
            *(("uniform", each) for each in _uniform(geometry, tuned.bytes_per_token)),
            *(("mode", each) for each in _modes(geometry)),
            *(("rule", each) for each in _presets(geometry)),
            *(("rule", each) for each in rules_at(geometry, tuned.bytes_per_token)),
            *(("permutation", each) for each in permuted(tuned, permutations, seed)),
        ]
    )
    for family, profile in candidates:
        same = profile if any(profile.spans) else spanned(profile, wish)
        found.setdefault(same.storages, (family, same))
    if wish:
        bare = replace(tuned, name=f"{tuned.name}, no spans", spans=(), evidence=None)
        found.setdefault(bare.storages, ("bare", bare))
        plain = replace(reference, name=reference.name.removesuffix(" + spans"), spans=())
        found.setdefault(plain.storages, ("uniform", plain))
    return list(found.values())


def spanned(profile: Profile, spans: LayerSpans) -> Profile:
    """The profile with these spans as far as it can have them, and a name that says so."""
    found = fitted(spans, profile.geometry, profile.pairs)
    return replace(profile, name=f"{profile.name} + spans", spans=found) if any(found) else profile


def wish_of(profile: Profile) -> Spans:
    """The spans of a whole profile: those of the layer that has most."""
    return max(profile.spans, key=lambda spans: spans.pages)


def reference_for(geometry: ModelGeometry, size: int) -> Profile:
    """The largest uniform turbo type within the bytes (and the tolerance), the smallest where none is."""
    every = [profile for name in TURBO if (profile := _resolved(name, geometry))]
    if not every:
        raise UserError(f"model {geometry.name} can't store turbo types: there is no uniform one to judge against")
    fits = [profile for profile in every if profile.bytes_per_token <= size / (1 - TOLERANCE)]
    return fits[-1] if fits else every[0]


def rules_at(geometry: ModelGeometry, size: int) -> list[Profile]:
    """First-N, last-N and both: as many layers as fit get better types over a uniform turbo base; the next layer of the
    rule gets the largest turbo pair that still fits, so that the rule has the same bytes."""
    layers = geometry.kv_layers
    bases = [p for name in TURBO if (p := _resolved(name, geometry)) and p.bytes_per_token < size]
    found = []
    for base in bases[-1:]:
        (low, _) = base.pairs[0]
        for edge in dict.fromkeys(
            [("q8_0", "q8_0"), ("q8_0", low), (low, "q8_0"), ("turbo6", "turbo6"), ("turbo5", "turbo5")]
        ):
            if sum(size_of(layer, edge) for layer in layers) <= size:
                continue  # it fits everywhere: no rule but a uniform pair
            for rule in _RULES:
                pairs = _filled(geometry, size, base.pairs, edge, _order(rule, len(layers)))
                if pairs is not None:
                    found.append(Profile(_line(pairs, base.pairs[0]), geometry, pairs))
    return found


def permuted(tuned: Profile, count: int, seed: int) -> list[Profile]:
    """Different assignments of the same pairs, each with its spans, to other layers of the same geometry, hence of the same
    bytes."""
    groups: dict[object, list[int]] = {}
    for ordinal, layer in enumerate(tuned.geometry.kv_layers):
        alike = layer.head_dim, layer.kv_heads, layer.role, layer.window, layer.reads_pages
        groups.setdefault(alike, []).append(ordinal)
    rng = np.random.default_rng(seed)
    seen = {tuned.storages}
    found: list[Profile] = []
    for _ in range(20 * count):
        if len(found) == count:
            break
        sources = list(range(len(tuned.pairs)))
        for members in groups.values():
            for to, source in zip(members, rng.permutation(members), strict=True):
                sources[to] = source
        profile = replace(
            tuned,
            name=f"permutation {len(found) + 1}",
            pairs=tuple(tuned.pairs[source] for source in sources),
            spans=tuple(tuned.spans[source] for source in sources),
            evidence=None,
        )
        if profile.storages not in seen:
            seen.add(profile.storages)
            found.append(profile)
    return found


def _predicted(tuned: Profile) -> list[Profile]:
    """The best uniform pair by the tuning's predictions, with its own spans."""
    text = (tuned.evidence or {}).get("best_uniform")
    profile = _resolved(text, tuned.geometry) if isinstance(text, str) else None
    return [] if profile is None else [replace(profile, name=pair_text(profile.pairs[0]))]


def _uniform(geometry: ModelGeometry, size: int) -> list[Profile]:
    around = (*TURBO, *TRELLIS, "q4_0_rot")
    found = [p for name in around if (p := _resolved(name, geometry)) and _within(p, size, *_FAR)]
    mixed = [(k, v) for family in (TURBO, TRELLIS) for k, v in product([*family, "q8_0"], repeat=2) if k != v]
    fits = [p for k, v in mixed if (p := _resolved(f"{k}/{v}", geometry)) and _within(p, size, 0, 1 / (1 - TOLERANCE))]
    # those that come closest, where sizes go in steps: at 5 bits a value they have 4.75
    least = min(_NEAR * size, max((p.bytes_per_token for p in fits), default=0))
    return (
        found
        + [p for p in fits if p.bytes_per_token >= least]
        + [p for name in _ALWAYS if (p := _resolved(name, geometry))]
    )


def _modes(geometry: ModelGeometry) -> list[Profile]:
    every = [p for number in MODES if number and (p := _resolved(f"mode{number}", geometry))]
    return [profile for profile in every if not profile.warnings or len(set(profile.pairs)) > 1]


def _presets(geometry: ModelGeometry) -> list[Profile]:
    return [p for name in PRESETS if (p := _resolved(name, geometry))]


def _within(profile: Profile, size: int, low: float, high: float) -> bool:
    return low * size <= profile.bytes_per_token <= high * size


def _resolved(text: str, geometry: ModelGeometry) -> Profile | None:
    """None for what this model can't have (a head_dim that a type can't store, fewer layers than a rule names)."""
    try:
        return resolve(text, geometry)
    except UserError:
        return None


def _order(rule: str, layers: int) -> list[int]:
    """The layers in the order in which the rule favours them."""
    if rule == "first":
        return list(range(layers))
    if rule == "last":
        return list(reversed(range(layers)))
    return [each for pair in zip(range(layers), reversed(range(layers)), strict=True) for each in pair][:layers]


def _filled(
    geometry: ModelGeometry, size: int, base: Sequence[Pair], edge: Pair, order: Sequence[int]
) -> tuple[Pair, ...] | None:
    """None where not even one layer can have the edge's pair."""
    pairs = list(base)
    left = size - sum(size_of(layer, pair) for layer, pair in zip(geometry.kv_layers, pairs, strict=True))
    given = 0
    for ordinal in order:
        layer = geometry.kv_layers[ordinal]
        room = left + size_of(layer, pairs[ordinal])
        if size_of(layer, edge) <= room:
            left, pairs[ordinal], given = room - size_of(layer, edge), edge, given + 1
            continue
        fits = [(k, v) for k in TURBO for v in TURBO if size_of(layer, (k, v)) <= room]
        pairs[ordinal] = max(
            fits, key=lambda pair: (size_of(layer, pair), -abs(TURBO.index(pair[0]) - TURBO.index(pair[1])))
        )
        break
    return tuple(pairs) if given else None


def _line(pairs: Sequence[Pair], base: Pair) -> str:
    """The assignment as a rule line that `resolve` reads."""
    groups: dict[Pair, list[int]] = {}
    for ordinal, pair in enumerate(pairs):
        if pair != base:
            groups.setdefault(pair, []).append(ordinal)
    clauses = [f"{ordinals_text(members).replace(' ', '')}: {pair_text(pair)}" for pair, members in groups.items()]
    return "; ".join([*clauses, f"rest: {pair_text(base)}"])
