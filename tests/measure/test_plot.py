from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comparisons import USUAL, comparison

from stratakv.errors import UserError
from stratakv.measure.plot import plot_comparison

CROWDED = [*USUAL, *((f"rule line number {i}", 4.2 + 0.1 * i, 2.9 - 0.05 * i, 0.1) for i in range(6))]


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".SVG", b"<?xml")])
def test_the_same_data_gives_the_same_bytes(tmp_path: Path, suffix: str, magic: bytes) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    plot_comparison(comparison(), first)
    plot_comparison(comparison(), second)
    assert first.read_bytes().startswith(magic)
    assert len(first.read_bytes()) > 10_000
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted([first, second])


@pytest.mark.parametrize("rows", [USUAL, CROWDED])
def test_labels_hide_nothing(tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratakv.measure import plot

    seen: list[Any] = []
    original = plot._place

    def place(figure: Any, axes: Any, labels: Any, drawn: Any) -> None:
        original(figure, axes, labels, drawn)
        renderer = figure.canvas.get_renderer()
        # an annotation's own extent includes its line to the mark; the text's alone is asked for
        from matplotlib.text import Text

        seen.extend((Text.get_window_extent(label, renderer), axes.bbox) for label in labels)

    monkeypatch.setattr(plot, "_place", place)
    plot_comparison(comparison(rows), tmp_path / "a.png")
    assert len(seen) == len(rows) - 1, "f16 is not on a log axis"
    for i, (box, frame) in enumerate(seen):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other, _ in seen[i + 1 :])


def test_what_the_picture_says(tmp_path: Path) -> None:
    """Texts of an SVG are paths, each after a comment with what it says."""
    plot_comparison(comparison(), tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    for text in ("made-up on text.txt: 16 contexts of 512 tokens", "reference (turbo4)", "mode 7", "bits per value"):
        assert f"<!-- {text} -->" in svg
    assert "Not shown, KLD exactly 0: f16 (12,288 bytes)." in svg


def test_far_predictions_have_a_frame_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratakv.measure import plot

    drawn: list[list[float]] = []
    original = plot._place
    monkeypatch.setattr(
        plot, "_place", lambda *words: (drawn.append([row["kld_mean"] for row in words[3]]), original(*words))
    )
    data = comparison(far=True)
    plot_comparison(data, tmp_path / "a.svg")
    every = [row["kld_mean"] for row in data["rows"] if row["kld_mean"] > 0]
    assert drawn == [every, [2 * kld for kld in every]]
    svg = (tmp_path / "a.svg").read_text()
    for text in ("all predictions", "far predictions: 4 x 2048 tokens"):
        assert f"<!-- {text} -->" in svg


def test_intervals_down_to_zero_and_none_at_all_can_be_drawn(tmp_path: Path) -> None:
    data = comparison()
    data["rows"][4]["kld_mean_ci95"] = [-0.001, 0.02]
    plot_comparison(data, tmp_path / "a.png")
    plot_comparison(comparison(intervals=False), tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_other_suffixes_and_nothing_to_draw_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.png or \.svg"):
        plot_comparison(comparison(), tmp_path / "a.pdf")
    data = comparison()
    data["rows"] = data["rows"][:1]
    with pytest.raises(UserError, match="nothing to draw"):
        plot_comparison(data, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_long_names_are_letters_as_in_the_table(tmp_path: Path) -> None:
    """Cut in their middle, 'turbo4; recent: 1 page turbo8' and '... 2 pages ...' were the same."""
    lines = [f"turbo4; recent: {pages} turbo8; first: 1 page turbo8" for pages in ("1 page", "2 pages")]
    layers = "; ".join(f"{i}: tcq{2 + i % 5}/tcq{2 + i % 3}" for i in range(30))
    rows = [*USUAL, *((name, 4.5 + i, 2.0 + i, 0.1) for i, name in enumerate([*lines, layers]))]
    plot_comparison(comparison(rows), tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    for text in ("A", "B", "C", f"A = {lines[0]}", f"B = {lines[1]}"):
        assert svg.count(f"<!-- {text}") >= 1, text
    plot_comparison(comparison(), tmp_path / "b.svg")
    assert "A = " not in (tmp_path / "b.svg").read_text()
