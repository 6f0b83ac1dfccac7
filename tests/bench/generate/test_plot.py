"""The picture of generation benchmarks: a file that can be read, deterministic, refused where there is nothing to draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from stratakv.bench.generate.plot import _looks, plot_generate
from stratakv.errors import UserError

RESULTS = sorted((Path(__file__).parents[3] / "benchmarks").glob("gguf-*.json"))


def test_results_that_were_kept_are_drawn(tmp_path: Path) -> None:
    results = [json.loads(path.read_text()) for path in RESULTS]
    assert len(results) == 4
    for name in ("a.png", "b.png", "c.svg"):
        plot_generate(results, tmp_path / name)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(2**24) or ()) > 50
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    drawn = (tmp_path / "c.svg").read_text()
    assert drawn.count("#0072B2".lower()) >= 4  # our line in each panel


def test_a_cache_looks_the_same_in_all_panels_and_others_are_grey() -> None:
    rows = [{"cache": "turbo4", "peer": None}, {"cache": "llama.cpp f16", "peer": "llama.cpp"}]
    looks = _looks([*rows, *reversed(rows), {"cache": "turbo3", "peer": None}])
    assert [look["label"] for look in looks.values()] == ["stratakv turbo4", "llama.cpp f16", "stratakv turbo3"]
    assert len({look["color"] for look in looks.values()}) == 3 and looks["llama.cpp f16"]["linestyle"] == "--"


def test_nothing_measured_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        plot_generate([{"rows": []}], tmp_path / "a.png")
    with pytest.raises(UserError):
        plot_generate([json.loads(RESULTS[0].read_text())], tmp_path / "a.jpeg")
    assert not list(tmp_path.iterdir())
