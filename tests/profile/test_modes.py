"""The fork's modes: exact assignments, the published averages, traps in words, and the fork to the letter."""

from __future__ import annotations

import pytest
from geometries import hybrid, plain

from stratakv.errors import UserError
from stratakv.profile import resolve
from stratakv.profile.modes import apply_mode, fork_bytes_per_token, fork_pairs

T4 = ("turbo4", "turbo4")
Q8 = ("q8_0", "q8_0")
T4T2 = ("turbo4", "turbo2")


def shape(mode: int, count: int) -> tuple[tuple[str, str], ...]:
    """The table of the modes over turbo4/turbo4, written out."""
    return {
        0: (T4,) * count,
        1: (Q8,) * 4 + (T4,) * (count - 8) + (Q8,) * 4,
        2: (T4,) * (count - 8) + (Q8,) * 8,
        5: (T4,) * 2 + (T4T2,) * (count - 4) + (T4,) * 2,
        6: (T4T2,) * (count - 8) + (T4,) * 8,
        7: (("turbo4", "q8_0"),) * 2 + (T4T2,) * (count - 4) + (("turbo4", "q8_0"),) * 2,
    }[mode]


@pytest.mark.parametrize("count", [8, 12, 28, 40])
@pytest.mark.parametrize("mode", [0, 1, 2, 5, 6, 7])
def test_assignment(mode, count):
    assert apply_mode(mode, plain(count), T4)[0] == shape(mode, count)
    assert fork_pairs(mode, plain(count), T4, {})[0] == shape(mode, count)


@pytest.mark.parametrize(("mode", "bpv"), [(0, 4.125), (1, 5.375), (2, 5.375), (5, 3.268), (6, 3.411), (7, 3.580)])
def test_averages_on_28_layers(mode, bpv):
    assert resolve(f"mode{mode}", plain(28)).bpv == pytest.approx(bpv, abs=5e-4)


def test_modes_1_and_2_on_12_layers_cost_71_percent():
    uniform = resolve("turbo4", plain(12)).bytes_per_token
    for mode in ("mode1", "mode2"):
        assert resolve(mode, plain(12)).bytes_per_token / uniform == pytest.approx(1.71, abs=5e-3)


def test_the_side_that_a_mode_does_not_touch_stays():
    assert set(apply_mode(7, plain(12), ("f16", "turbo3"))[0]) == {("f16", "q8_0"), ("f16", "turbo2")}
    assert set(apply_mode(1, plain(12), ("turbo3", "f16"))[0]) == {Q8, ("turbo3", "f16")}


@pytest.mark.parametrize("mode", [1, 2, 5, 6, 7])
def test_few_layers_give_uniform_and_a_warning(mode):
    pairs, warnings = apply_mode(mode, plain(7), T4)
    assert pairs == (T4,) * 7
    reason = "it needs at least 8 KV layers and this model has 7"
    assert warnings == (f"mode {mode} does nothing: {reason}, so every layer is turbo4",)


def test_trellis_types_are_turbo_ones_to_a_mode():
    pairs, warnings = apply_mode(1, plain(12), ("tcq4", "tcq4"))
    assert [pair[0] for pair in pairs] == ["q8_0"] * 4 + ["tcq4"] * 4 + ["q8_0"] * 4
    assert warnings == ()


def test_wrong_base_types_are_said():
    pairs, warnings = apply_mode(1, plain(12), ("q8_0", "turbo4"))
    assert pairs == (("q8_0", "turbo4"),) * 12
    assert warnings == (
        "mode 1 does nothing: it needs a turbo type for -ctk, which is q8_0, so every layer is q8_0/turbo4",
    )
    assert "a turbo type for -ctv, which is f16" in apply_mode(7, plain(12), ("turbo4", "f16"))[1][0]


def test_lowered_types_are_said():
    _, (warning,) = apply_mode(7, plain(12), T4)
    assert warning == "mode 7 ignores -ctv turbo4 and lowers V to turbo2 in 8 of 12 KV layers (2-9)"
    _, warnings = apply_mode(5, plain(12), ("turbo4", "turbo8"))
    assert [w.partition("lowers ")[2] for w in warnings] == [
        "V to turbo4 in 4 of 12 KV layers (0-1, 10-11)",
        "V to turbo2 in 8 of 12 KV layers (2-9)",
    ]
    assert apply_mode(1, plain(12), ("turbo4", "f16"))[1] == (
        "mode 1 ignores -ctv f16 and lowers V to q8_0 in 8 of 12 KV layers (0-3, 8-11)",
    )
    assert apply_mode(7, plain(12), ("turbo4", "turbo2"))[1] == ()
    assert apply_mode(1, plain(12), T4)[1] == ()


def test_a_mode_without_a_middle_is_said():
    assert "mode 1 covers all 8 KV layers" in apply_mode(1, plain(8), T4)[1][0]


def test_unknown_numbers():
    for number in (-1, 3, 4, 8):
        with pytest.raises(UserError, match=f"unknown mode {number}: allowed are 0, 1, 2, 5, 6, 7 "):
            apply_mode(number, plain(12), T4)
        pairs, warnings = fork_pairs(number, plain(12), T4, {})
        assert pairs == (T4,) * 12
        assert warnings == (f"compat: the fork takes mode {number} for mode 0",)


def test_hybrid_models_both_ways():
    geometry = hybrid()  # 16 of 64 layers have a cache: 3, 7, ... 63
    assert apply_mode(7, geometry, T4)[0] == shape(7, 16)
    pairs, warnings = fork_pairs(7, geometry, T4, {})
    assert pairs == (T4T2,) * 15 + (("turbo4", "q8_0"),)
    assert warnings[0] == (
        "compat: the fork counts all 64 layers, of which 16 have a KV cache: "
        "mode 7 protects 1 of these where 4 were meant"
    )
    assert fork_pairs(1, geometry, T4, {})[0] == (Q8,) + (T4,) * 14 + (Q8,)
    assert apply_mode(7, hybrid(24), T4)[0] == (T4,) * 6
    assert ("turbo4", "q8_0") in fork_pairs(7, hybrid(24), T4, {})[0]


def test_compat_turns_mode_7_on_for_turbo2():
    pairs, warnings = fork_pairs(None, plain(12), T4T2, {})
    assert pairs == shape(7, 12)
    assert "silently turns mode 7 on" in warnings[0]
    assert fork_pairs(0, plain(12), T4T2, {}) == ((T4T2,) * 12, ())
    assert fork_pairs(None, plain(12), T4, {}) == ((T4,) * 12, ())
    assert apply_mode(0, plain(12), T4T2) == ((T4T2,) * 12, ())


def test_compat_raises_k_where_6_query_heads_share_a_kv_head():
    wide = plain(12, kv_heads=2, q_heads=12)
    pairs, warnings = fork_pairs(None, wide, T4, {})
    assert pairs == (("q8_0", "turbo4"),) * 12
    assert "silently makes K q8_0" in warnings[0]
    assert "6 query heads a kv head" in warnings[0]
    pairs, warnings = fork_pairs(1, wide, T4, {})
    assert pairs == (("q8_0", "turbo4"),) * 12
    assert "mode 1 does nothing" in warnings[1]
    assert fork_pairs(2, wide, T4, {"TURBO_AUTO_ASYMMETRIC": "0"})[0] == shape(2, 12)
    assert fork_pairs(None, plain(12, kv_heads=2, q_heads=10), T4, {}) == ((T4,) * 12, ())
    assert fork_pairs(None, wide, ("turbo4", "turbo3"), {})[0] == (("turbo4", "turbo3"),) * 12
    assert fork_pairs(None, wide, Q8, {}) == ((Q8,) * 12, ())
    # both silent rules at once
    both, _ = fork_pairs(None, wide, ("turbo2", "turbo2"), {})
    assert both == (Q8,) * 2 + (("q8_0", "turbo2"),) * 8 + (Q8,) * 2


@pytest.mark.parametrize("name", ["turbo5", "turbo8", "q4_0_rot"])
def test_compat_refuses_types_that_the_fork_lacks(name):
    with pytest.raises(UserError, match=f"the fork has no type {name}: .*allowed are f32, .*turbo4$"):
        fork_pairs(None, plain(12), ("f16", name), {})


def test_the_fork_pads_and_we_do_not():
    profile = resolve("q8_0/turbo4", plain(8, head_dim=64), compat_fork=True)
    assert profile.bytes_per_token == 8 * 2 * (68 + 34)
    assert fork_bytes_per_token(profile) == 8 * 2 * (68 + 66)
    same = resolve("turbo4", plain(8, head_dim=256), compat_fork=True)
    assert fork_bytes_per_token(same) == same.bytes_per_token
