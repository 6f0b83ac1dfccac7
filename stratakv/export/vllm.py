"""vLLM as it ships: one of its TurboQuant presets in all layers but those that are skipped, which stay 16 bit.

Beside each answer stands the command for vLLM with this project's plugin, which says every profile; it was tested on a CPU.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from stratakv.errors import UserError
from stratakv.export.buun import allocate
from stratakv.export.target import Command, Costs, NotExpressible, Runtime, Weights, budget
from stratakv.profile import ModelGeometry, Profile
from stratakv.profile.profile import Pair, ordinals_text, pair_text
from stratakv.profile.rules import rule_line
from stratakv.vllm_plugin.front import PROFILE

# Our pair that a preset comes closest to -> the preset. Its V is uniform where ours is Lloyd-Max, its 8-bit K is FP8.
_PRESETS: dict[Pair, str] = {
    ("q8_0", "turbo4"): "turboquant_k8v4",
    ("turbo4", "turbo4"): "turboquant_4bit_nc",
    ("turbo3", "turbo4"): "turboquant_k3v4_nc",
    ("turbo3", "turbo3"): "turboquant_3bit_nc",
}
_WHOLE: tuple[Pair, ...] = (("f16", "f16"), ("bf16", "bf16"))
_EDGE = 2  # layers at either end that vLLM always skips, in models without linear attention
_CLOSE = "; ".join(f"{preset} for {pair_text(pair)}" for pair, preset in _PRESETS.items())


class Vllm(Runtime):
    """A preset and a set of layers to skip. In dense models its first and last two layers are skipped whatever is asked for."""

    title = "vLLM"
    types = tuple(dict.fromkeys(name for pair in [*_PRESETS, _WHOLE[0]] for name in pair))
    weights: Weights = "directory"

    def _command(self, profile: Profile, model: str) -> Command:
        """--kv-cache-dtype, and the layers to skip by the model's own numbers. A note, or the reason, has the plugin's."""
        plugin = _by_plugin(profile, model)
        try:
            stock = self._stock(profile, model)
        except NotExpressible as reason:
            raise NotExpressible(f"{reason}; {plugin}") from None
        return Command(stock.text, (*stock.notes, plugin))

    def _stock(self, profile: Profile, model: str) -> Command:
        packed = list(dict.fromkeys(pair for pair in profile.pairs if pair not in _WHOLE))
        if not packed:
            return Command(shlex.join(["vllm", "serve", model, "--kv-cache-dtype", "auto"]))
        if unknown := [pair for pair in packed if pair not in _PRESETS]:
            raise NotExpressible(
                f"it has no preset for {', '.join(map(pair_text, unknown))} (it has {_CLOSE}, and 16 bit)"
            )
        if len(packed) > 1:
            asked = ", ".join(map(pair_text, packed))
            raise NotExpressible(
                f"one preset holds for all layers that are not 16 bit, {len(packed)} are asked for: {asked}"
            )
        edges = _edges(profile.geometry)
        if forced := [ordinal for ordinal in edges if profile.pairs[ordinal] not in _WHOLE]:
            raise NotExpressible(
                f"it keeps the first and last {_EDGE} layers at 16 bit whatever is asked for, KV layers {ordinals_text(forced)} "
                "are to be smaller"
            )
        skipped = [
            str(layer.layer)
            for ordinal, (layer, pair) in enumerate(zip(profile.geometry.kv_layers, profile.pairs, strict=True))
            if pair in _WHOLE and ordinal not in edges
        ]
        words = ["vllm", "serve", model, "--kv-cache-dtype", _PRESETS[packed[0]]]
        words += ["--kv-cache-dtype-skip-layers", *skipped] if skipped else []
        return Command(shlex.join(words), self._notes(profile, bool(edges)))

    def _nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """The allocator for each preset: the preset or 16 bit in each layer, 16 bit at the ends."""
        count, edges = len(profile.pairs), set(_edges(profile.geometry))
        found: list[tuple[bool, float, tuple[Pair, ...]]] = []
        for preset in _PRESETS:
            allowed = [[_WHOLE[0]] if ordinal in edges else [preset, _WHOLE[0]] for ordinal in range(count)]
            try:
                pairs = allocate(profile, allowed, costs)
            except UserError:
                continue  # a head dim that a type of the preset can't store
            size = Profile("", profile.geometry, pairs).bytes_per_token
            cost = sum(costs(i, side, name) for i, pair in enumerate(pairs) for side, name in enumerate(pair))
            found.append((size > budget(profile), cost if size <= budget(profile) else size, pairs))
        if not found:
            raise UserError(f"no preset of vLLM can store the head dims of {profile.geometry.name}")
        return min(found)[2]

    def bytes_per_token(self, profile: Profile) -> int:
        """vLLM's own layout: FP8 keys without scales, V with a scale and a zero point, an even number of bytes a head."""
        total = 0
        for layer, pair in zip(profile.geometry.kv_layers, profile.pairs, strict=True):
            total += layer.kv_heads * _slot(pair, layer.head_dim)
        return total

    def _notes(self, profile: Profile, edges: bool) -> tuple[str, ...]:
        notes = [
            "its codecs are near ours, not equal: K of 8 bits is FP8, V is uniform with scale and zero point; the KLD differs",
            f"by its own layout {self.bytes_per_token(profile):,} bytes a token, by ours {profile.bytes_per_token:,}; CUDA only",
        ]
        if edges:
            notes.append(f"it skips the first and last {_EDGE} layers by itself")
        return tuple(notes)


TARGET = Vllm()


def _by_plugin(profile: Profile, model: str) -> str:
    """How the plugin is told the profile, and what it loses: nothing of the types, but it isn't for all models."""
    if any(layer.role in ("linear", "chunked") for layer in profile.geometry.layers):
        return "stratakv's plugin for vLLM refuses models whose layers keep a state or attend in chunks"
    option = json.dumps({PROFILE: rule_line(profile.pairs)})
    command = shlex.join(["vllm", "serve", model, "--enforce-eager", "--additional-config", option])
    return (
        f"with stratakv's plugin vLLM 0.32 gives every layer its own types, {profile.bytes_per_token:,} bytes a token, tested on "
        f"a CPU without compiled graphs (--enforce-eager) and never run on a GPU: {command}"
    )


def _edges(geometry: ModelGeometry) -> list[int]:
    """KV ordinals that are skipped whatever is asked for."""
    if len(geometry.layers) != len(geometry.kv_layers):
        return []
    count = len(geometry.layers)
    size = min(_EDGE, count // 2)
    return [*range(size), *range(count - size, count)]


def _slot(pair: Pair, head_dim: Sequence[int]) -> int:
    if pair in _WHOLE:
        return 2 * sum(head_dim)
    preset = _PRESETS[pair]
    k_bits, v_bits = {"k8v4": (8, 4), "4bit": (4, 4), "k3v4": (3, 4), "3bit": (3, 3)}[preset.split("_")[1]]
    k = head_dim[0] if k_bits == 8 else -(-head_dim[0] * k_bits // 8) + 2
    size = k - (-head_dim[1] * v_bits // 8) + 4
    return size + size % 2
