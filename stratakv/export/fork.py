"""llama.cpp's TurboQuant fork: -ctk, -ctv and one of its layer modes, counted over all layers of the model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from stratakv.export.target import Command, Costs, NotExpressible, Runtime, budget, storable
from stratakv.kvtypes import kv_type
from stratakv.profile import ModelGeometry, Profile
from stratakv.profile.modes import (
    ASYMMETRIC_HEADS,
    FORK_TYPES,
    MODES,
    apply_mode,
    fork_bytes_per_token,
    fork_side_bytes,
)
from stratakv.profile.profile import Pair, pair_text


class Fork(Runtime):
    """What it can say is finite: pairs of types times modes. All are tried."""

    title = "the TurboQuant fork"
    types = FORK_TYPES

    def _command(self, profile: Profile, model: str) -> Command:
        """-ctk, -ctv and the variables. TURBO_LAYER_ADAPTIVE is always set: unset it is not always mode 0."""
        self._check_types(profile)
        used = list(dict.fromkeys(pair for pair in profile.pairs))
        names = list(dict.fromkeys(name for pair in used for name in pair))
        for base, mode, pairs in _expressible(profile.geometry, names):
            if pairs == profile.pairs:
                return Command(_line(base, mode, profile.geometry, model), _notes(profile, base))
        raise NotExpressible(
            f"its layers differ as no mode ({', '.join(map(str, MODES))}) over one -ctk and one -ctv makes them: "
            f"{', '.join(map(pair_text, used))}"
        )

    def _nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """The best of all pairs and modes."""
        allowed, geometry = budget(profile), profile.geometry
        names = storable(FORK_TYPES, geometry)
        worth = {
            (ordinal, side, name): (costs(ordinal, side, name), fork_side_bytes(kv_type(name), layer, side))
            for ordinal, layer in enumerate(geometry.kv_layers)
            for side in (0, 1)
            for name in names
        }
        best: tuple[bool, float, int] | None = None
        found: tuple[Pair, ...] = ()
        for _, _, pairs in _expressible(geometry, names):
            each = [worth[ordinal, side, name] for ordinal, pair in enumerate(pairs) for side, name in enumerate(pair)]
            cost, size = sum(cost for cost, _ in each), sum(size for _, size in each)
            rank = (False, cost, size) if size <= allowed else (True, float(size), size)
            if best is None or rank < best:
                best, found = rank, pairs
        return found

    def bytes_per_token(self, profile: Profile) -> int:
        """It zero-pads turbo heads to a multiple of 128 values."""
        return fork_bytes_per_token(profile)


TARGET = Fork()


def _expressible(geometry: ModelGeometry, names: list[str]) -> Iterator[tuple[Pair, int, tuple[Pair, ...]]]:
    """Every (-ctk and -ctv, mode, resulting pairs), mode 0 first. A mode that does nothing is mode 0."""
    for mode in MODES:
        for k in names:
            for v in names:
                pairs, _ = apply_mode(mode, geometry, (k, v), raw_layers=True)
                if mode == 0 or pairs != ((k, v),) * len(pairs):
                    yield (k, v), mode, pairs


def _line(base: Pair, mode: int, geometry: ModelGeometry, model: str) -> str:
    k, v = base
    variables = [f"TURBO_LAYER_ADAPTIVE={mode}"]
    layer = geometry.kv_layers[0]
    if k == v and kv_type(k).turbo and layer.q_heads >= ASYMMETRIC_HEADS * layer.kv_heads:
        variables.append("TURBO_AUTO_ASYMMETRIC=0")
    return " ".join([*variables, shlex.join(["llama-server", "-m", model, "-fa", "on", "-ctk", k, "-ctv", v])])


def _notes(profile: Profile, base: Pair) -> tuple[str, ...]:
    notes = [
        "its codebooks differ from ours in the third digit; builds before 2026-06-26 have a worse turbo4 of 4.25 bpv"
    ]
    theirs = fork_bytes_per_token(profile)
    if theirs != profile.bytes_per_token:
        notes.append(
            f"it pads turbo heads to 128 values: {theirs:,} bytes a token instead of {profile.bytes_per_token:,}"
        )
    if len(profile.geometry.layers) != len(profile.geometry.kv_layers):
        notes.append(
            "it counts all layers of the model, those without a cache included; that is taken into account here"
        )
    return tuple(notes)
