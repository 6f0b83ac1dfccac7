"""The layer modes of the llama.cpp fork that ships turbo types (--layer-adaptive N, TURBO_LAYER_ADAPTIVE=N).

Below 8 layers a mode does nothing, modes 1 and 2 need a
turbo -ctk, modes 5 to 7 need a turbo -ctv and then ignore which one it was. By default only layers are counted that
have a KV cache and every trap is said in words; `fork_pairs` reproduces the fork instead, silent rules included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from stratakv.errors import UserError
from stratakv.kvtypes import KVType, kv_type
from stratakv.profile.geometry import LayerGeometry, ModelGeometry
from stratakv.profile.profile import Pair, Profile, ordinals_text, pair_text
from stratakv.profile.storage import side_bytes

Side = Literal["K", "V"]
Types = tuple[str | None, str | None]  # K and V; None: as -ctk and -ctv say

FORK_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "turbo2", "turbo3", "turbo4")
MINIMUM_LAYERS = 8
FORK_BLOCK = 128
ASYMMETRIC_HEADS = 6  # query heads a kv head, from which the fork raises K


@dataclass(frozen=True)
class Mode:
    """needs: the side that must be of a turbo type. first, last: sizes of the edges. edge, middle: what they get."""

    needs: Side | None
    first: int
    last: int
    edge: Types
    middle: Types
    meaning: str


MODES: dict[int, Mode] = {
    0: Mode(None, 0, 0, (None, None), (None, None), "every layer as -ctk and -ctv say"),
    1: Mode("K", 4, 4, ("q8_0", "q8_0"), (None, None), "K and V q8_0 in the first 4 and last 4 layers"),
    2: Mode("K", 0, 8, ("q8_0", "q8_0"), (None, None), "K and V q8_0 in the last 8 layers"),
    5: Mode(
        "V", 2, 2, (None, "turbo4"), (None, "turbo2"), "V turbo4 in the first 2 and last 2 layers, turbo2 elsewhere"
    ),
    6: Mode("V", 0, 8, (None, "turbo4"), (None, "turbo2"), "V turbo4 in the last 8 layers, turbo2 elsewhere"),
    7: Mode("V", 2, 2, (None, "q8_0"), (None, "turbo2"), "V q8_0 in the first 2 and last 2 layers, turbo2 elsewhere"),
}


def apply_mode(
    number: int, geometry: ModelGeometry, base: Pair, *, raw_layers: bool = False
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """The pairs by KV ordinal that a mode gives over the base types (-ctk, -ctv), and warnings.

    raw_layers: count all layers of the model, as the fork does, not only those with a KV cache.
    Raises UserError for a mode that does not exist.
    """
    if number not in MODES:
        raise UserError(f"unknown mode {number}: allowed are {', '.join(map(str, MODES))} ({_CHOICES})")
    mode = MODES[number]
    layers = geometry.kv_layers
    uniform = (base,) * len(layers)
    count = len(geometry.layers) if raw_layers else len(layers)
    kind = "layers" if raw_layers else "KV layers"
    if number == 0:
        return uniform, ()
    if count < MINIMUM_LAYERS:
        reason = f"it needs at least {MINIMUM_LAYERS} {kind} and this model has {count}"
        return uniform, (f"mode {number} does nothing: {reason}, so every layer is {pair_text(base)}",)
    if mode.needs and not kv_type(base["KV".index(mode.needs)]).turbo:
        option, given = ("-ctk", base[0]) if mode.needs == "K" else ("-ctv", base[1])
        reason = f"it needs a turbo type for {option}, which is {given}"
        return uniform, (f"mode {number} does nothing: {reason}, so every layer is {pair_text(base)}",)
    positions = [layer.layer if raw_layers else ordinal for ordinal, layer in enumerate(layers)]
    edges = [position < mode.first or position >= count - mode.last for position in positions]
    pairs = tuple(_over(mode.edge if edge else mode.middle, base) for edge in edges)
    return pairs, (*_coverage(number, edges, count, raw_layers), *_lowered(number, geometry, base, pairs))


def fork_pairs(
    number: int | None, geometry: ModelGeometry, base: Pair, environ: Mapping[str, str]
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """What the fork would assign to the letter, each of its silent rules announced as a warning.

    number: the mode that was set, None when none was. environ: read for TURBO_AUTO_ASYMMETRIC.
    Raises UserError for types that the fork does not have.
    """
    for name in base:
        if name not in FORK_TYPES:
            raise UserError(f"the fork has no type {name}: with --compat fork allowed are {', '.join(FORK_TYPES)}")
    warnings = []
    k, v = base
    heads = _heads_per_kv_head(geometry)
    asked_off = environ.get("TURBO_AUTO_ASYMMETRIC") == "0"
    if k == v and kv_type(k).turbo and heads >= ASYMMETRIC_HEADS and not asked_off:
        k = "q8_0"
        warnings.append(
            f"compat: the fork silently makes K q8_0, since -ctk and -ctv are both {v} and the model has {heads:g} "
            f"query heads a kv head (from {ASYMMETRIC_HEADS} on; TURBO_AUTO_ASYMMETRIC=0 turns it off)"
        )
    if number is None and v == "turbo2":
        number = 7
        warnings.append(
            "compat: the fork silently turns mode 7 on, since -ctv is turbo2 and no mode is set (mode 0 turns it off)"
        )
    elif number is not None and number not in MODES:
        warnings.append(f"compat: the fork takes mode {number} for mode 0")
        number = 0
    pairs, more = apply_mode(number or 0, geometry, (k, v), raw_layers=True)
    return pairs, (*warnings, *more)


def fork_bytes_per_token(profile: Profile) -> int:
    """Bytes a token that the fork would need for these pairs: it zero-pads turbo heads to a multiple of 128 values."""
    return sum(
        fork_side_bytes(storage.k, layer, 0) + fork_side_bytes(storage.v, layer, 1)
        for layer, storage in zip(profile.geometry.kv_layers, profile.storages, strict=True)
    )


def fork_side_bytes(type_: KVType, layer: LayerGeometry, side: Literal[0, 1]) -> int:
    """Bytes that one token's K (side 0) or V (1) takes in the fork, padding counted."""
    if type_.turbo:
        k_dim, v_dim = (-(-dim // FORK_BLOCK) * FORK_BLOCK for dim in layer.head_dim)
        layer = replace(layer, head_dim=(k_dim, v_dim))
    return side_bytes(type_, layer, side)


_CHOICES = "; ".join(f"{number}: {mode.meaning}" for number, mode in MODES.items())


def _over(types: Types, base: Pair) -> Pair:
    return types[0] or base[0], types[1] or base[1]


def _heads_per_kv_head(geometry: ModelGeometry) -> float:
    layer = geometry.kv_layers[0]
    return layer.q_heads / layer.kv_heads


def _coverage(number: int, edges: list[bool], count: int, raw_layers: bool) -> list[str]:
    mode = MODES[number]
    if raw_layers and len(edges) < count:
        return [
            f"compat: the fork counts all {count} layers, of which {len(edges)} have a KV cache: "
            f"mode {number} protects {sum(edges)} of these where {mode.first + mode.last} were meant"
        ]
    if all(edges):
        return [
            f"mode {number} covers all {len(edges)} KV layers: there is no middle, every layer gets the edge's types"
        ]
    return []


def _lowered(number: int, geometry: ModelGeometry, base: Pair, pairs: tuple[Pair, ...]) -> list[str]:
    """Words for every side and type where the mode stores fewer bits than -ctk and -ctv ask for."""
    warnings = []
    for index, option in enumerate(("-ctk", "-ctv")):
        worse: dict[str, list[int]] = {}
        for ordinal, (layer, pair) in enumerate(zip(geometry.kv_layers, pairs, strict=True)):
            asked, got = kv_type(base[index]), kv_type(pair[index])
            if got.bits_per_value(layer.head_dim[index]) < asked.bits_per_value(layer.head_dim[index]):
                worse.setdefault(got.name, []).append(ordinal)
        for name, ordinals in worse.items():
            warnings.append(
                f"mode {number} ignores {option} {base[index]} and lowers {'KV'[index]} to {name} "
                f"in {len(ordinals)} of {len(pairs)} KV layers ({ordinals_text(ordinals)})"
            )
    return warnings
