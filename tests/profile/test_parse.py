"""Every kind of profile text, its name, and what is said about texts that mean nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from geometries import plain

from stratakv.errors import UserError
from stratakv.profile import Spans, resolve, save_profile
from stratakv.profile.parse import respanned, respanned_each
from stratakv.profile.presets import PRESETS
from stratakv.profile.spans import NONE

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


SPANS = "recent: 2 pages turbo8; first: 1 page turbo8"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"turbo4; {SPANS}", f"turbo4; {SPANS}"),
        ("q8_0/turbo4 ;first:1 page ;recent:2 pages", f"q8_0/turbo4; {SPANS}"),
        (f"mode7;{SPANS}", f"mode 7; {SPANS}"),
        (f"edges3-turbo3; {SPANS}", f"edges3-turbo3; {SPANS}"),
        (f"rest: turbo4; {SPANS}", f"rest: turbo4; {SPANS}"),
    ],
)
def test_spans_after_any_text(text, name):
    profile = resolve(text, GEOMETRY)
    assert (profile.name, set(profile.spans)) == (name, {Spans(2, first=1)})
    if not text.startswith("mode"):
        assert resolve(profile.name, GEOMETRY) == profile


def test_spans_after_a_file_win_over_its_own(tmp_path):
    path = tmp_path / "mine.json"
    save_profile(resolve(f"rest: turbo4; {SPANS}", GEOMETRY), path)
    assert set(resolve(f"{path}; recent: 4 pages turbo8", GEOMETRY).spans) == {Spans(4, first=1)}
    off = resolve(f"{path}; recent: 0 pages; first: 0 pages", GEOMETRY)
    assert (off.name, set(off.spans)) == ("turbo4", {NONE})


def test_the_fork_has_no_spans():
    with pytest.raises(UserError, match="the fork has no spans"):
        resolve(f"turbo4; {SPANS}", GEOMETRY, compat_fork=True)
    assert not any(resolve("turbo4", GEOMETRY, compat_fork=True).spans)


@pytest.mark.parametrize("text", ["turbo4; recent 2 pages", "turbo4; first 1 page turbo8; recent: 1 page"])
def test_a_span_without_its_colon_is_a_short_line(text):
    with pytest.raises(UserError, match="lacks its ':': write 'recent: 2 pages' or") as error:
        resolve(text, GEOMETRY)
    assert len(str(error.value)) < 160


def test_several_keep_what_they_can():
    given = [resolve(text, GEOMETRY) for text in ("f16", "turbo4")]
    bare, spanned = respanned_each(given, {"recent": (2, "turbo8")})
    assert bare is given[0] and spanned.name == "turbo4; recent: 2 pages turbo8"
    with pytest.raises(UserError, match="no layer can have the spans"):
        respanned_each(given[:1], {"recent": (2, "turbo8")})


def test_respanned():
    named = replace(resolve("turbo4", GEOMETRY), name="mine", spans=(Spans(2),) * 12)
    assert respanned(named, {}) is named
    assert respanned(named, {"recent": (0, "turbo8")}).name == "mine; no spans"
    changed = respanned(named, {"recent": (1, "f16")})
    assert (changed.name, changed.spans[0]) == ("mine; recent: 1 page f16", Spans(1, "f16"))
    with pytest.raises(
        UserError, match=r"no layer can have the spans 'recent: 2 pages turbo3': .* KV layers 0-11: none"
    ):
        respanned(resolve("turbo4", GEOMETRY), {"recent": (2, "turbo3")})
