"""Every kind of profile text, its name, and what is said about texts that mean nothing."""

from __future__ import annotations

import pytest
from geometries import plain

from stratakv.errors import UserError
from stratakv.profile import resolve, save_profile
from stratakv.profile.presets import PRESETS

GEOMETRY = plain(12)
RULE = "first2: q8_0; rest: turbo4"


@pytest.mark.parametrize(
    ("text", "name", "first"),
    [
        ("turbo4", "turbo4", ("turbo4", "turbo4")),
        ("turbo4/turbo4", "turbo4", ("turbo4", "turbo4")),
        ("q8_0/turbo4", "q8_0/turbo4", ("q8_0", "turbo4")),
        (" q4_0_rot ", "q4_0_rot", ("q4_0_rot", "q4_0_rot")),
        ("mode1", "mode 1", ("q8_0", "q8_0")),
        ("mode7@q8_0/turbo3", "mode 7 over q8_0/turbo3", ("q8_0", "q8_0")),
        ("mode0@turbo2", "mode 0 over turbo2", ("turbo2", "turbo2")),
        (RULE, RULE, ("q8_0", "q8_0")),
        ("edges3-vf16", "edges3-vf16", ("q8_0", "f16")),
    ],
)
def test_texts(text, name, first):
    profile = resolve(text, GEOMETRY, fingerprint="abc")
    assert (profile.name, profile.pairs[0], profile.fingerprint) == (name, first, "abc")
    assert not profile.compat_fork


def test_base_lies_under_modes_and_rule_lines():
    base = ("q8_0", "turbo3")
    assert resolve("mode7", GEOMETRY, base=base).name == "mode 7 over q8_0/turbo3"
    assert resolve("0: f16", GEOMETRY, base=base).pairs == (("f16", "f16"),) + (base,) * 11
    with pytest.raises(UserError, match="no K type for KV layers 1-11"):
        resolve("0: f16", GEOMETRY)


def test_files(tmp_path):
    path = tmp_path / "a b:c.profile.json"
    profile = resolve(RULE, GEOMETRY, fingerprint="abc")
    save_profile(profile, path)
    assert resolve(str(path), GEOMETRY, fingerprint="abc") == profile
    with pytest.raises(UserError, match="is abc .* the model at hand is def"):
        resolve(str(path), GEOMETRY, fingerprint="def")


@pytest.mark.parametrize("text", ["", "turbo9", "modeX", "mode", "edges4", "edges3.yaml", "Turbo4"])
def test_unknown_texts_list_what_is_possible(text):
    with pytest.raises(UserError, match=f"unknown profile '{text}'") as error:
        resolve(text, GEOMETRY)
    message = str(error.value)
    assert "\n" not in message
    for possible in ("q4_0_rot", "q8_0/turbo4", *PRESETS, "modeN", "0, 1, 2, 5, 6, 7", "rest: turbo4", ".json"):
        assert possible in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("turbo9/turbo4", "turbo9"),
        ("a/b/c", "cannot read 'a/b/c'"),
        ("turbo4/", "cannot read 'turbo4/'"),
        ("mode3", "unknown mode 3: allowed are 0, 1, 2, 5, 6, 7"),
        ("mode-1", "unknown mode -1"),
        ("mode1@", "cannot read ''"),
        ("mode1@turbo9", "turbo9"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UserError, match=message):
        resolve(text, GEOMETRY)


def test_compat(monkeypatch):
    wide = plain(12, kv_heads=1, q_heads=8)
    monkeypatch.delenv("TURBO_AUTO_ASYMMETRIC", raising=False)
    profile = resolve("turbo4", wide, compat_fork=True)
    assert (profile.name, profile.compat_fork) == ("turbo4 as the fork", True)
    assert profile.pairs[0] == ("q8_0", "turbo4")
    monkeypatch.setenv("TURBO_AUTO_ASYMMETRIC", "0")
    assert resolve("turbo4", wide, compat_fork=True).pairs[0] == ("turbo4", "turbo4")
    assert resolve("q8_0/turbo2", wide, compat_fork=True).pairs[2:4] == (("q8_0", "turbo2"),) * 2
    assert resolve("q8_0/turbo2", wide, compat_fork=True).pairs[0] == ("q8_0", "q8_0")
    assert resolve("mode3", wide, compat_fork=True).warnings == ("compat: the fork takes mode 3 for mode 0",)
    for text in (RULE, "edges3", "x.json"):
        with pytest.raises(UserError, match=f"the fork cannot express '{text}'"):
            resolve(text, wide, compat_fork=True)
