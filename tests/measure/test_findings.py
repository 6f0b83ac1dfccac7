from __future__ import annotations

from comparisons import USUAL, comparison

from stratakv.measure.findings import findings
from stratakv.measure.table import WIDTH


def section(text: str, title: str) -> list[str]:
    """The profiles under a title."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    names = []
    for line in lines[start + 1 :]:
        if not line.startswith("  "):
            break
        names.append(line[2:].split("  ")[0])
    return names


def test_the_usual_answer() -> None:
    text = findings(comparison())
    assert text.startswith("Which profiles are better than uniform turbo4 (3,168 bytes a token, 4.125 bpv)?")
    assert "None of these is better at turbo4's bytes or fewer." in text
    assert section(text, "Better, for more bytes") == ["q4_0_rot", "mode 1", "q8_0"], "by bytes"
    assert section(text, "Worse, although") == ["mode 7"]
    assert section(text, "Worse, for fewer") == ["turbo3"]
    assert section(text, "No difference shown") == ["edges3"]
    assert "KLD -77 % [-82, -72] at +71 % bytes (5,407 a token, 7.040 bpv)" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_win_at_the_same_bytes_comes_first() -> None:
    text = findings(comparison([*USUAL, ("tuned", 4.125, 2.1, 0.1), ("lean", 4.0, 2.5, 0.1)]))
    assert section(text, "Better, for the same bytes or fewer") == ["lean", "tuned"]
    assert "None of these" not in text


def test_more_damage_at_the_same_bytes_is_worse_although_it_costs_as_many() -> None:
    text = findings(comparison([*USUAL, ("permuted", 4.125, 5.0, 0.1)]))
    assert section(text, "Worse, although") == ["permuted", "mode 7"]


def test_the_f16_cache_is_no_winner() -> None:
    assert "f16  " not in findings(comparison())


def test_without_intervals_nothing_is_called_real() -> None:
    text = findings(comparison(intervals=False))
    assert "is real" not in text
    assert len(section(text, "Undecided")) == len(USUAL) - 2
    assert "Perplexity alone" not in text


def test_what_perplexity_would_have_missed_is_counted() -> None:
    # the made-up interval of a PPL difference is 0.005 to either side of it
    assert "shows no loss against f16 for 5 of 7 profiles" in findings(comparison())
