from __future__ import annotations

import pytest
from comparisons import comparison

from stratakv.measure.table import WIDTH, format_comparison, format_perplexity, labels, short_name, significant
from stratakv.profile.rules import rule_line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.978, "2.98"),
        (41.94, "41.9"),
        (0.012345, "0.0123"),
        (1234.5, "1,234"),
        (-0.5, "-0.500"),
        (3.2e-9, "3.2e-09"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


def test_the_table_fits_and_shows_every_row() -> None:
    long = "first3,last3: k=q8_0 v=turbo4; 4-6: k=turbo5 v=turbo6; rest: turbo3"
    data = comparison([*comparison_rows(), (long, 4.7, 5.1, 0.1)])
    data["rows"][-1]["warnings"] = ["a warning " * 20]
    text = format_comparison(data)
    assert max(map(len, text.splitlines())) <= WIDTH
    for row in data["rows"]:
        assert f"{row['bytes_per_token']:,}" in text
        assert row["verdict"].split(":")[0] in text
    assert text.count(long) == 1, "the whole name stands below the verdicts, once"
    assert f"\nA = {long}\n" in text
    assert "\nA     " in text and "\n  A       worse: " in text
    assert "warning: A: a warning a warning" in text
    assert "16 contexts of 512 tokens" in text
    assert "4,080 predictions" in text


def test_names_give_way_to_wide_numbers() -> None:
    data = comparison()
    data["rows"][1].update(name="a profile with a name", ppl=1234.0, ppl_diff=123.0, ppl_diff_ci95=[-1e4, 1e4])
    data["rows"][2].update(name="mode 1 as the fork")
    text = format_comparison(data)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "A = a profile with a name" in text
    assert f"\n{short_name('mode 1 as the fork', 10)} " in text and " mode 1 as the fork  better: " in text


def test_rule_lines_of_thirty_layers_are_named_once() -> None:
    """A letter each, also for the reference and in warnings; letters that are profiles' names are left out."""
    types = ["q8_0", "turbo4", "turbo3", "turbo6"]
    first, second = (rule_line([(types[(i * s) % 4], types[(i // s) % 4]) for i in range(30)]) for s in (1, 3))
    data = comparison([*comparison_rows(), ("A", 4.2, 2.0, 0.1), (first, 4.7, 5.1, 0.1), (second, 4.9, 2.5, 0.1)])
    data["rows"][-1]["warnings"] = [f"{second} costs more than it gives"]
    data["reference"] = second
    text = format_comparison(data)
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH and len(first) > 100
    assert [line.split()[0] for line in lines if line[:1] in ("A", "B", "C") and line[1] == " "] == [
        "A",
        "B",
        "C",
        "B",
        "C",
    ]
    assert "\nagainst C (*" in text
    assert "warning: C costs more than it gives" in text
    flat = " ".join(text.split())
    assert flat.count(first) == flat.count(second) == 1


def test_letters_go_on() -> None:
    names = [f"{'long name ' * 3}{i}" for i in range(30)]
    assert list(labels([*names, "B"]).values())[:3] == ["A", "C", "D"]
    assert labels(names)[names[29]] == "AD"
    assert labels(names, 40) == {name: name for name in names}


def test_short_names() -> None:
    assert short_name("turbo4") == "turbo4"
    assert short_name("first3: k=q8_0 v=turbo4; rest: turbo4") == "first3: k=q8… turbo4"
    assert all(len(short_name("abcdefghij" * 4, width)) == width for width in range(8, 30))


def comparison_rows() -> list[tuple[str, float, float, float]]:
    return [("f16", 16.0, 0.0, 0.0), ("turbo4", 4.125, 3.0, 0.0), ("mode 7", 4.19, 8.7, 0.2)]


def test_numbers_and_marks_of_a_row() -> None:
    lines = format_comparison(comparison()).splitlines()
    row = next(line for line in lines if line.startswith("turbo3"))
    cells = "turbo3 3.125 2,400 60.01 +0.01 [+0.01, +0.02] 11.6 [10.4, 12.8] 5.80 92.8 50.0% 95.0%"
    assert " ".join(row.split()) == cells
    verdicts = {line[2:12].strip(): line for line in lines if line[:2] in ("* ", "  ")}
    assert verdicts["turbo3"] == "* turbo3    worse: KLD +287 % [+267, +307] at -24 % bytes"
    assert verdicts["mode 7"].startswith("  mode 7"), "beaten by turbo4"


def test_allocated_bytes_are_compared_with_the_arithmetic() -> None:
    data = comparison()
    data["rows"][1]["allocated_bytes"] = round(1.25 * data["rows"][1]["context_bytes"])
    assert "at most 25.0% above" in format_comparison(data)


def test_without_intervals_none_are_shown() -> None:
    text = format_comparison(comparison(intervals=False))
    assert "undecided: fewer than 4 contexts" in text
    assert "[+" not in text


def test_warnings_name_their_profile_once_and_repeat_nothing() -> None:
    data = comparison()
    data["warnings"] = ["the text is short"]
    data["rows"][6]["warnings"] = ["mode 7 ignores -ctv", "no effect", "no effect"]
    warnings = [line for line in format_comparison(data).splitlines() if line.startswith("warning")]
    assert warnings == ["warning: the text is short", "warning: mode 7 ignores -ctv", "warning: mode 7: no effect"]


def test_perplexity_always_has_its_standard_error() -> None:
    data = comparison()
    row = {**data["rows"][4], "ppl_se": 1.25, "ppl_se_over": "contexts", "seconds": 3.0}
    data["rows"] = [row]
    text = format_perplexity(data)
    assert "PPL = 60.0116 +/- 1.2500 (standard error over 16 contexts)" in text
    assert "KLD mean = 0.0116 [0.01044, 0.01276] nats" in text
    bare = {name: value for name, value in row.items() if not name.startswith(("kld", "ppl_diff"))}
    data["rows"] = [{**bare, "ppl_se_over": "tokens"}]
    text = format_perplexity(data)
    assert "over 4080 tokens counted as independent, so too small" in text
    assert "KLD" not in text
