from __future__ import annotations

import pytest
import torch

from stratakv.bench.timing import copies, interleaved, load_warnings, spread, torch_threads


def test_cases_take_turns_and_caches_rotate() -> None:
    calls: list[tuple[str, int]] = []

    def case(name: str, seconds: float):  # type: ignore[no-untyped-def]
        def run(turn: int) -> float:
            calls.append((name, turn))
            return seconds

        return run

    found = interleaved({"a": case("a", 1.0), "b": case("b", 2.0)}, seconds=0, least=3)
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3}  # a long call is measured once a visit
    assert calls == [(name, turn) for turn in range(3) for name in "ab"]


def test_short_calls_are_warmed_up_first() -> None:
    turns: list[int] = []

    def run(turn: int) -> float:
        turns.append(turn)
        return 1e-9 * turn

    found = interleaved({"a": run}, seconds=0, least=1)
    assert found["a"] == [1e-9 * turn for turn in turns[-3:]]
    assert len(turns) > 3
    assert turns == sorted(set(turns))


def test_rotation_covers_what_was_asked() -> None:
    assert copies(100, 256) == 3
    assert copies(256, 256) == 1
    assert copies(1000, 256) == 1


def test_spread_is_in_milliseconds() -> None:
    assert spread([0.004, 0.001, 0.002, 0.003, 0.1]) == {"ms": 3.0, "ms_quartiles": [2.0, 4.0], "calls": 5}


def test_a_busy_machine_is_said() -> None:
    assert load_warnings(0.3) == load_warnings(None) == []
    assert "2.0" in load_warnings(2.0)[0]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
