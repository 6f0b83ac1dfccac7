"""The buun fork of llama.cpp: VBR_LAYER_SCHEDULE gives any layer's K and V a type, by the model's own layer numbers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from stratakv.export.target import Command, Costs, Runtime, budget, storable
from stratakv.profile import LayerStorage, Profile
from stratakv.profile.profile import Pair
from stratakv.tune.allocate import Options, Table

# Our name -> the schedule's. A bare turbo2 or turbo3 would mean its trellis-coded types there.
_NAMES = {
    "f16": "f16",
    "bf16": "bf16",
    "q8_0": "q8_0",
    "turbo8": "turbo8",
    "turbo4": "turbo4",
    "turbo3": "turbo3_0",
    "turbo2": "turbo2_0",
}
_ROWS = "0-8192"  # a band has to cover the window that the schedule's rows refer to, 8,192 unless VBR_SCHEDULE_CTX says otherwise


class Buun(Runtime):
    """Any of its types in any layer. What it pads was not verified."""

    title = "the buun fork"
    types = tuple(_NAMES)

    def _command(self, profile: Profile, model: str) -> Command:
        """The variable, strict, and the base types."""
        self._check_types(profile, "of ours only")
        default = Counter(name for pair in profile.pairs for name in pair).most_common(1)[0][0]
        bands = [f"default={_NAMES[default]}"]
        raw = [layer.layer for layer in profile.geometry.kv_layers]
        for side, letter in enumerate("kv"):
            bands += _bands([pair[side] for pair in profile.pairs], raw, letter, default)
        words = ["llama-server", "-m", model, "-fa", "on", "-ctk", default, "-ctv", default]
        schedule = shlex.quote(";".join(bands))
        notes = (
            "the variable wins over -ctk and -ctv; VBR_LAYER_STRICT=1 makes an entry that it does not understand an error",
            "turbo3_0 and turbo2_0 are its scalar types: a bare turbo3 or turbo2 would mean its trellis-coded ones",
            "its codebooks are its own: the KLD is not exactly ours; turbo types need its GPU backend",
        )
        return Command(f"VBR_LAYER_STRICT=1 VBR_LAYER_SCHEDULE={schedule} {shlex.join(words)}", notes)

    def _nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """The allocator, with its types."""
        names = [name for name in storable(_NAMES, profile.geometry) if name != "bf16"]
        return allocate(profile, [[(k, v) for k in names for v in names]] * len(profile.pairs), costs)


TARGET = Buun()


def allocate(profile: Profile, allowed: Sequence[Sequence[Pair]], costs: Costs) -> tuple[Pair, ...]:
    """The pairs of least cost out of those allowed by KV ordinal within the profile's budget; the smallest where none fits."""
    options = []
    for ordinal, (layer, pairs) in enumerate(zip(profile.geometry.kv_layers, allowed, strict=True)):
        sizes = [sum(LayerStorage.of(pair).token_bytes(layer)) for pair in pairs]
        assert layer.ordinal == ordinal
        options.append(
            Options(tuple(pairs), tuple(sizes), tuple(costs(ordinal, 0, k) + costs(ordinal, 1, v) for k, v in pairs))
        )
    table = Table(options)
    return table.solve(max(budget(profile), table.base)).pairs


def _bands(names: list[str], raw: list[int], letter: str, default: str) -> list[str]:
    """Runs of KV layers that differ from the default; layers without a cache in between don't matter."""
    bands: list[str] = []
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start]:
            if names[start] != default:
                bands.append(f"band={_ROWS}:{_NAMES[names[start]]}:{letter}:l{raw[start]}-{raw[end - 1]}")
            start = end
    return bands
