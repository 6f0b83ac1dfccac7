"""Each metric on predictions whose numbers can be worked out by hand, and in every place that shows it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import comparison

from stratakv.measure.metrics import METRICS
from stratakv.measure.table import format_comparison

KLD = np.array([[0.0, 5e-4, 1e-3], [2e-3, 4e-3, 1.0]])
AGREE = np.array([[True, True, True], [True, False, False]])
VALUES = {
    "kld_median": 1.5e-3,
    "kld_p99": 4e-3 + 0.95 * (1.0 - 4e-3),
    "kld_max": 1.0,
    "kld_share_above_1e-3": 0.5,
    "top1": 4 / 6,
}


def test_values() -> None:
    assert {metric.field: metric.of(KLD, AGREE) for metric in METRICS} == pytest.approx(VALUES)


def test_every_heading_is_in_the_table_of_compare() -> None:
    (head,) = (line for line in format_comparison(comparison()).splitlines() if line.startswith("profile"))
    assert head.split()[-4:] == [metric.heading for metric in METRICS if metric.heading]
    assert head.split()[-4:] == ["median", "p99", ">1e-3", "top-1"]


def test_published_tables_have_the_published_ones() -> None:
    path = Path(__file__).parents[2] / "tools" / "results_tables.py"
    spec = importlib.util.spec_from_file_location("results_tables", path)
    assert spec is not None and spec.loader is not None
    tables: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    head, rule, *rows = tables.table(comparison()).splitlines()
    assert (
        head == "| profile | bpv | bytes/token | PPL - f16 | KLD, 1e-3 nats | median | p99 | top-1 | against turbo4 |"
    )
    assert rule == "|---|---:|---:|---:|---:|---:|---:|---:|---|"
    turbo4 = next(row for row in rows if row.startswith("| turbo4"))
    assert " | 1.5 | 24 | 95.0% | reference |" in turbo4
    far = tables.table(comparison(far=True)).splitlines()
    assert "| KLD, 1e-3 nats | far KLD | median |" in far[0]
    assert len({line.count("|") for line in far}) == 1
    turbo3 = next(row for row in far if row.startswith("| turbo3"))
    assert " | 23.2 [20.9, 25.5] | " in turbo3 and "; far: worse, KLD +287 %" in turbo3
