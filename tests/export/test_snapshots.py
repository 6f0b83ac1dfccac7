"""The exact text of every target, as files. STRATAKV_UPDATE_SNAPSHOTS=1 writes them anew: look at the difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from geometries import hybrid, plain, sliding

from stratakv.export.offer import offer
from stratakv.export.target import NotExpressible
from stratakv.export.targets import OWN, TARGETS, target
from stratakv.profile import resolve

HERE = Path(__file__).parent / "snapshots"
MODELS = {
    "12 layers": plain(12),
    "hybrid, 16 of 64": hybrid(),
    "sliding": sliding(),
    "head_dim 64": plain(10, head_dim=64),
}
PROFILES = (
    "f16",
    "turbo4",
    "q8_0/turbo3",
    "q8_0/q4_0_rot",
    "first2: q8_0/q5_1; last1: f16/q5_1; rest: q4_0/q5_1",
    "first2,last2: f16; rest: turbo4",
    "0: turbo8/turbo3; -1: q8_0; rest: turbo4/turbo2",
    "0: turbo4/turbo6; 1: turbo5; rest: turbo4",
)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != OWN])
def test_as_written_down(name):
    goal, lines = target(name), []
    for title, geometry in MODELS.items():
        for text in (*PROFILES, *(["mode7", "mode1@turbo3/turbo4"] if title == "12 layers" else [])):
            profile = resolve(text, geometry)
            lines.append(f"# {title}: {text}")
            try:
                command = goal.command(profile, "model")
                lines += [command.text, *(f"  note: {note}" for note in command.notes)]
            except NotExpressible as reason:
                lines += [f"  not expressible: {reason}", f"  offer: {offer(profile, goal, None).name}"]
            lines.append("")
    written, file = "\n".join(lines), HERE / f"{name}.txt"
    if os.environ.get("STRATAKV_UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(written, encoding="utf-8")
    assert written == file.read_text(encoding="utf-8")
