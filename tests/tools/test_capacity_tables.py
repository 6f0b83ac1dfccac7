"""The capacity table of docs/scaling.md is what the tool prints, and what it prints is plain arithmetic."""

from __future__ import annotations

from pathlib import Path

from capacity_tables import GIB, MODELS, cache_bytes, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def test_bytes_of_a_dense_model() -> None:
    values = 131072 * 32 * 8 * 128 * 2
    assert MODELS[0].layers[0].kv_heads == 8
    sizes = [cache_bytes(MODELS[0], stored) * 8 / values for stored in ("f16", "fp8", "turbo4", "3.5 bits")]
    assert sizes == [16, 8, 4.125, 3.5]


def test_windows_are_counted_as_long_as_they_are() -> None:
    full, windowed = 10 * 131072, 52 * 1024
    assert cache_bytes(MODELS[2], "f16") == (full + windowed) * 16 * 128 * 2 * 2
    assert 10 * GIB < cache_bytes(MODELS[2], "f16") < 11 * GIB
