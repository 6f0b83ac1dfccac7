"""Named rule lines: the profiles that the project began with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A rule line and one sentence that says what it does."""

    line: str
    meaning: str


PRESETS: dict[str, Preset] = {
    "edges3": Preset(
        "first3,last3: k=q8_0 v=turbo4; rest: turbo4",
        "The first 3 and last 3 KV layers keep K in q8_0, everything else is turbo4.",
    ),
    "edges3-vf16": Preset(
        "first3,last3: k=q8_0 v=f16; rest: turbo4",
        "As edges3, but the same 6 layers keep V in f16.",
    ),
    "edges3-turbo3": Preset(
        "first3,last3: k=q8_0 v=turbo4; rest: turbo3",
        "As edges3, but the layers between the edges are turbo3, which pays for the edges.",
    ),
}
