from __future__ import annotations

from typing import Any

import pytest

from stratakv.bench.generate.goals import goals

MiB = 1 << 20


def _row(model: str, cache: str, context: int, speed: float, prefill: float | None = None) -> dict[str, Any]:
    return {
        "model": model,
        "cache": cache,
        "context": context,
        "weight_bytes": 100 * MiB,
        "resident_weights": None if cache.startswith("llama.cpp") else 98 * MiB,
        "tokens_per_second": speed,
        "prefill_tokens_per_second": prefill,
    }


def test_decoding_is_against_the_faster_of_llama_cpps_f16() -> None:
    rows = [
        *(_row("a.gguf", "turbo4", context, speed) for context, speed in ((128, 99.0), (8192, 160.0))),
        _row("a.gguf", "f16", 128, 150.0, 800.0),
        *(_row("a.gguf", "llama.cpp f16", context, 100.0, 400.0) for context in (128, 8192)),
        _row("a.gguf", "llama.cpp f16 -fa off", 128, 90.0, 500.0),
        _row("a.gguf", "llama.cpp q8_0", 128, 900.0),
    ]
    found = {each["goal"]: each for each in goals(rows)}
    at_128 = found["a.gguf: decoding at 128 tokens with turbo4 against llama.cpp's f16"]
    assert at_128["measured"] == pytest.approx(0.99) and not at_128["met"]
    assert found["a.gguf: decoding at 8,192 tokens with turbo4 against llama.cpp's f16"]["met"]
    assert found["a.gguf: decoding at 128 tokens with f16 against llama.cpp's f16"]["measured"] == pytest.approx(1.5)
    assert found["a.gguf: prefill with f16 against llama.cpp's f16"]["measured"] == pytest.approx(1.6)
    assert len(found) == 5  # with the weights; none of what nobody asked for


def test_the_embedded_model_has_a_goal_of_its_own() -> None:
    rows = [_row("embedded", "turbo4", 128, 85.0), _row("embedded", "llama.cpp f16", 128, 100.0)]
    assert [each["met"] for each in goals(rows)] == [True, True]


def test_without_llama_cpp_or_packed_weights_there_is_nothing_to_hold_against() -> None:
    assert goals([_row("a.gguf", "turbo4", 128, 1.0)]) == []
    unpacked = {**_row("a", "turbo4", 128, 1.0), "resident_weights": None}
    assert goals([unpacked, _row("a", "llama.cpp f16", 128, 1.0)]) == []
