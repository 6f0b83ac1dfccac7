"""Scales, ticks, labels, colours: the parts that a reader's eye relies on."""

from __future__ import annotations

import itertools
import re

import pytest
from evidences import evidence, judgement
from hypothesis import given
from hypothesis import strategies as st

from stratakv.evidence.tuning import bits_of
from stratakv.kvtypes import kv_type, type_names
from stratakv.report.cells import cell_charts
from stratakv.report.equal_bytes import equal_rows
from stratakv.report.heat import colours, contrast
from stratakv.report.pareto import pareto_chart
from stratakv.report.svg import Scale, log_scale, place_labels, text_width


def chart_of(rows: list[dict], front: list[dict], *, width: float, limit: float, called: dict[str, str] | None = None):
    """Every row by its own name unless `called` says otherwise."""
    names = {row["name"]: row["name"] for row in rows} | (called or {})
    return pareto_chart(rows, front, "turbo4", names, width=width, title="t", limit=limit)


def rgb(text: str) -> tuple[int, ...]:
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("name", type_names())
def test_letters_are_readable_on_every_types_colour(name):
    ground, ink = colours(kv_type(name).bits_per_value(128))
    assert contrast(rgb(ground), rgb(ink)) >= 4.5


def test_more_bits_are_never_paler():
    white = (255, 255, 255)
    by_bits = sorted(kv_type(name).bits_per_value(128) for name in type_names())
    shades = [contrast(rgb(colours(bits)[0]), white) for bits in by_bits]
    assert shades == sorted(shades)


def test_types_are_ordered_by_their_bits_whatever_they_are_called():
    data = evidence()
    data["bits_per_value"] = {**bits_of(data), "turbo2": 9.0, "q8_0": 2.5}
    charts = cell_charts(data["sensitivity"], bits_of(data))
    assert [each["type"] for each in charts] == ["q8_0", "turbo3", "turbo5", "turbo2"]


@given(st.floats(1e-7, 1e3), st.floats(1.01, 1e5), st.booleans())
def test_ticks_lie_inside_and_the_scale_is_monotone(low, factor, log):
    scale = Scale(low, low * factor, 10.0, 200.0, log=log)
    ticks = scale.ticks()
    assert all(scale.low * (1 - 1e-9) <= tick <= scale.high * (1 + 1e-9) for tick in ticks)
    assert len(ticks) <= 14
    places = [scale(tick) for tick in ticks]
    assert places == sorted(places)
    assert scale(low) == pytest.approx(10) and scale(low * factor) == pytest.approx(200)
    assert scale(low / 10) == pytest.approx(10)


def test_a_logarithmic_scale_has_room_and_ticks():
    scale = log_scale([1e-4, 3e-2], 400, 0)
    assert scale.low < 1e-4 and scale.high > 3e-2
    assert 4 <= len(scale.ticks()) <= 7


def test_labels_of_distant_points_stand_beside_them():
    labels = place_labels([(100, 100, "one"), (300, 200, "two")], [(100, 100), (300, 200)], (0, 0, 500, 400))
    assert ['x="109.0"' in labels[0], 'x="309.0"' in labels[1]] == [True, True]


def test_labels_avoid_each_other_and_the_frame():
    points = [(200.0, 100.0 + 3 * i, f"label {i}") for i in range(5)] + [(490.0, 100.0, "at the edge")]
    labels = "".join(place_labels(points, [(x, y) for x, y, _ in points], (0, 0, 500, 400)))
    assert 'text-anchor="end" class="label">at the edge' in labels


def test_the_chart_leaves_out_what_has_no_place():
    rows = [{**row, "bytes_per_token": row["bytes_per_token"]} for row in judgement()["rows"]]
    chart = chart_of(rows, [], width=760, limit=6336)
    assert "<title>q4_0_rot: " in chart and "<title>f16" not in chart and "<title>q8_0" not in chart
    assert chart.count("permutation ") == 20


def test_of_rules_at_the_same_bytes_the_best_has_its_name_and_all_have_marks():
    rows = judgement()["rows"]
    rule = next(row for row in rows if row["family"] == "rule")
    rows += [{**rule, "name": f"rule {i}", "kld_mean": rule["kld_mean"] * (0.5 + i)} for i in range(4)]
    chart = chart_of(rows, [], width=760, limit=6336)
    assert [f"<title>rule {i}: " in chart for i in range(4)] == [True] * 4
    assert [f">rule {i}</text>" in chart for i in range(4)] == [True, False, False, False]
    assert ">turbo4</text>" in chart and ">mode 7</text>" in chart


def test_the_front_is_a_line_with_its_measured_points():
    data = evidence()
    chart = chart_of(data["rows"], data["front"], width=360, limit=6400)
    assert 'class="front"' in chart
    assert chart.count("<title>tuned, ") == 2


def test_a_front_over_other_bytes_is_drawn_without_turning_back():
    """A memory at a context counts windowed layers less: its front isn't one over bytes a token."""
    data = evidence()
    worse = {**data["front"][0], "bytes_per_token": data["front"][1]["bytes_per_token"] + 1, "kld": None}
    plain = chart_of(data["rows"], data["front"], width=360, limit=6400)
    assert chart_of(data["rows"], [*data["front"], worse], width=360, limit=6400) == plain


def test_sensitivities_have_a_chart_a_type_with_its_sign():
    charts = cell_charts(evidence()["sensitivity"], bits_of(evidence()))
    assert [(each["type"], each["sign"]) for each in charts] == [
        ("turbo2", "added"),
        ("turbo3", "added"),
        ("turbo5", "saved"),
        ("q8_0", "saved"),
    ]
    assert "layer 0, V turbo2: KLD added 8.00 [7.98, 8.02] e-3" in charts[0]["charts"]["wide"]


@pytest.mark.parametrize("layers", [5, 12, 13, 30, 48, 80, 128])
def test_the_numbers_of_layers_stand_apart(layers):
    """As wide as this page's digits are at most; many layers have a wider chart on a wide page."""
    data = evidence(layers=layers)
    charts = cell_charts(data["sensitivity"], bits_of(data))[0]["charts"]
    assert (charts["wide"] == charts["narrow"]) is (layers <= 40)
    for chart in charts.values():
        ticks = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="middle" class="tick">(\d+)<', chart)
        assert len(ticks) >= min(layers, 4) and ticks[0][1] == "0"
        for (left, before), (right, after) in itertools.pairwise(ticks):
            half = (text_width(before) + text_width(after)) / 2
            assert float(right) - float(left) >= half


def test_a_long_name_is_written_short_and_told_when_pointed_at():
    rows = judgement()["rows"]
    rule = next(row for row in rows if row["family"] == "rule")
    rule["name"] = "; ".join(f"{layer}: turbo4/turbo3" for layer in range(80))
    chart = chart_of(rows, [], width=760, limit=6336, called={rule["name"]: "A"})
    assert ">A</text>" in chart and chart.count(rule["name"]) == 1


def test_cells_whose_interval_lies_on_the_other_side_of_0_stand_at_the_edge():
    data = evidence()
    for cell in data["sensitivity"]["cells"][:2]:
        cell.update(kld=-1e-4, ci95=[-2e-4, -1e-5])
    chart = cell_charts(data["sensitivity"], bits_of(data))[0]["charts"]["narrow"]
    assert "layer 1, K turbo2: KLD added -0.100 [-0.200, -0.0100] e-3" in chart


def test_rows_at_equal_bytes_are_sorted_and_permutations_are_one():
    called = {row["name"]: row["name"] for row in judgement()["rows"]}
    rows = equal_rows(judgement(), {**called, "turbo4": "B"})
    assert [row["name"] for row in rows] == ["tuned-turbo4", "B", "20 shuffles of the tuned profile"]
    assert rows[0]["change"].startswith("-32 % [") and rows[1]["change"] == "reference"
    assert equal_rows({**judgement(), "equal_bytes": {"at": 1, "tolerance": 0.005}}, called) == []
