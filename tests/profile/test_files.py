"""Profile files: round trip, atomic writing, and a refusal for every way a file can be wrong."""

from __future__ import annotations

import copy
import json

import pytest
from geometries import hybrid, plain, sliding
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.errors import UserError
from stratakv.kvtypes import type_names
from stratakv.profile import Profile, Spans, load_profile, save_profile
from stratakv.profile.files import profile_to_json
from stratakv.profile.spans import NONE
from stratakv.profile.spans import PAGE_TOKENS as PAGE
from stratakv.profile.spread import fit

GEOMETRY = plain(3)
PROFILE = Profile("mix", GEOMETRY, (("q8_0", "turbo4"), ("turbo4", "turbo4"), ("f16", "q4_0")), fingerprint="abc")

TWO = {"recent": 2, "recent_type": "turbo8", "first": 0, "first_type": "turbo8"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


SPANS = [NONE, Spans(2), Spans(1, "f16", 1, "f16"), Spans(first=1)]


def spread_anyhow(spans, geometry, pairs):
    """To each layer what it can have, be it nothing at all."""
    return tuple(fit(spans, layer, pair)[0] for layer, pair in zip(geometry.kv_layers, pairs, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip(tmp_path_factory, data):
    geometry = data.draw(st.sampled_from([plain(1), plain(5, head_dim=64), hybrid(16), sliding()]))
    names = st.sampled_from(type_names())
    pairs = data.draw(
        st.lists(st.tuples(names, names), min_size=len(geometry.kv_layers), max_size=len(geometry.kv_layers))
    )
    profile = Profile(
        data.draw(st.text()),
        geometry,
        tuple(pairs),
        spans=spread_anyhow(data.draw(st.sampled_from(SPANS)), geometry, pairs),
        fingerprint=data.draw(st.none() | st.text("0123456789abcdef", min_size=1)),
        evidence=data.draw(st.none() | st.dictionaries(st.text(), json_values, max_size=3)),
    )
    path = tmp_path_factory.mktemp("round") / "p.profile.json"
    save_profile(profile, path)
    assert load_profile(path, geometry, profile.fingerprint) == profile


def test_the_form_of_the_file():
    data = profile_to_json(PROFILE)
    assert list(data) == ["schema", "name", "model", "layers", "types", "bytes_per_token", "bpv", "evidence"]
    assert data["schema"] == "stratakv/profile/2"
    assert data["model"] == {"fingerprint": "abc", "name": "plain-3", "kv_layers": 3}
    assert data["layers"][0] == {
        "layer": 0,
        "ordinal": 0,
        "role": "full",
        "head_dim": [128, 128],
        "kv_heads": 2,
        "k": "q8_0",
        "v": "turbo4",
        "spans": None,
    }
    assert data["types"]["turbo4"]["rotation_seed"] == 42
    assert data["types"]["f16"]["rotation_seed"] is None
    assert set(data["types"]) == {"q8_0", "turbo4", "f16", "q4_0"}


def test_an_unknown_fingerprint_on_either_side_is_no_contradiction(tmp_path):
    path = tmp_path / "p.json"
    save_profile(PROFILE, path)
    assert load_profile(path, GEOMETRY).fingerprint == "abc"
    save_profile(Profile("mix", GEOMETRY, PROFILE.pairs), path)
    assert load_profile(path, GEOMETRY, "def").fingerprint == "def"


def test_a_file_of_schema_1_loads(tmp_path):
    data = profile_to_json(PROFILE)
    data["schema"] = "stratakv/profile/1"
    for layer in data["layers"]:
        del layer["spans"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert load_profile(path, GEOMETRY) == PROFILE


def test_spans_longer_than_the_context_of_the_model_at_hand(tmp_path):
    path = tmp_path / "long.json"
    save_profile(Profile("long", plain(1, context=0), (("turbo4", "turbo4"),), spans=(Spans(5120 // PAGE),)), path)
    with pytest.raises(
        UserError,
        match=rf"long\.json: spans of {5120 // PAGE} pages \(5,120 tokens\) are longer than the context of 4,096",
    ):
        load_profile(path, plain(1))


def test_evidence_may_be_left_out(tmp_path):
    data = profile_to_json(PROFILE)
    del data["evidence"]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    assert load_profile(path, GEOMETRY) == PROFILE


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    path.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stratakv.files.os.replace", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*p\.json: No space left"):
        save_profile(PROFILE, path)
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
    assert path.read_text() == "old"


def test_places_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(UserError, match="cannot write .*nowhere"):
        save_profile(PROFILE, tmp_path / "nowhere" / "p.json")
    with pytest.raises(UserError, match=r"cannot read the profile .*absent\.json: No such file"):
        load_profile(tmp_path / "absent.json", GEOMETRY)
    with pytest.raises(UserError, match="cannot read the profile"):
        load_profile(tmp_path, GEOMETRY)


def test_evidence_that_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_profile(Profile("x", GEOMETRY, PROFILE.pairs, evidence={"kld": float("nan")}), tmp_path / "p.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b'{"schema": "stratakv/profile/1", "na', "is not JSON"),
        (b"\xff\xfe", "is not a text file in UTF-8"),
        (b"[]", r"the file is \[\], it must be an object with schema, name"),
        (b'{"name": "a", "name": "b"}', "the key 'name' is given twice"),
        (b'{"bpv": NaN}', "NaN is not a number that JSON allows"),
        (b'{"bpv": ' + b"1" * 5000 + b"}", "is not JSON"),
    ],
)
def test_files_that_are_no_profile(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=rf"bad\.json.* {message}|bad\.json: {message}"):
        load_profile(path, GEOMETRY)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (
            ("schema",),
            "stratakv/profile/3",
            "schema is 'stratakv/profile/3', allowed are 'stratakv/profile/2' and 'stratakv/profile/1'",
        ),
        (
            ("schema",),
            "stratakv/profile/1",
            r"layers\[0\] has spans, which schema 'stratakv/profile/1' has not: they came",
        ),
        (("layers", 1, "windows"), 1, r"layers\[1\] has an unknown key 'windows', allowed are layer, .* spans"),
        (("layers", 1, "spans"), 2, r"layers\[1\], spans is 2, it must be an object or null"),
        (("layers", 1, "spans"), {"recent": 2}, r"layers\[1\].spans lacks the key 'recent_type'"),
        (("layers", 1, "spans"), {**TWO, "oldest": 1}, r"layers\[1\].spans has an unknown key 'oldest'"),
        (("layers", 1, "spans"), {**TWO, "recent": -2}, r"layers\[1\].spans can't be: recent: -2 pages: give 0"),
        (("layers", 1, "spans"), {**TWO, "recent": 0}, r"layers\[1\].spans can't be: no pages; write null"),
        (("layers", 1, "spans"), {**TWO, "recent_type": "turbo9"}, r"layers\[1\].spans can't be: .*turbo9"),
        (
            ("layers", 1, "spans"),
            {**TWO, "recent_type": "turbo2"},
            r"layers\[1\].spans can't be: .*turbo2 is not finer",
        ),
        (("layers", 1, "spans"), TWO, "types lacks the key 'turbo8'"),
        (("extra",), 1, "the file has an unknown key 'extra', allowed are schema, name"),
        (("name",), None, "the file, name is null, it must be a text"),
        (("bpv",), True, "the file, bpv is true, it must be a number"),
        (("bpv",), 4.2, r"bpv is 4.2, its types take 6\.8958"),
        (("bytes_per_token",), 1, "bytes_per_token is 1, its types take"),
        (("evidence",), [], r"evidence is \[\], it must be an object or null"),
        (
            ("model", "fingerprint"),
            "other",
            r"model.fingerprint is other \(plain-3\), the model at hand is abc \(plain-3\)",
        ),
        (("model", "kv_layers"), 4, r"model.kv_layers is 4 \(plain-3\), the model at hand \(plain-3\) has 3"),
        (("model", "size"), 4, "model has an unknown key 'size'"),
        (("layers",), [], "layers has 0 entries, the model has 3 KV layers"),
        (("layers", 1), None, r"layers\[1\] is null, it must be an object"),
        (("layers", 1, "ordinal"), 2, r"layers\[1\].ordinal is 2, the model at hand has 1"),
        (("layers", 1, "layer"), 7, r"layers\[1\].layer is 7, the model at hand has 1"),
        (("layers", 1, "role"), "sliding", r"layers\[1\].role is 'sliding', the model at hand has 'full'"),
        (
            ("layers", 1, "head_dim"),
            [64, 64],
            r"layers\[1\].head_dim is \[64, 64\], the model at hand has \[128, 128\]",
        ),
        (("layers", 1, "kv_heads"), "2", r'layers\[1\], kv_heads is "2", it must be a whole number'),
        (("layers", 1, "k"), "turbo9", r"layers\[1\].k is the unknown type 'turbo9', allowed are f32.*turbo8"),
        (("types", "turbo4", "version"), 99, "types.turbo4.version is 99, this version of stratakv has"),
        (("types", "turbo4", "rotation_seed"), 7, "types.turbo4.rotation_seed is 7, this version of stratakv has 42"),
        (("types", "turbo2"), {"version": 1, "rotation_seed": 42}, "types has an unknown key 'turbo2'"),
    ],
)
def test_a_changed_field_is_refused(tmp_path, where, value, message):
    data = profile_to_json(PROFILE)
    target = data
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=rf"bad\.json: {message}|bad\.json: the file, {message}") as error:
        load_profile(path, GEOMETRY, "abc")
    assert "\n" not in str(error.value)


def test_every_key_but_the_evidence_is_needed(tmp_path):
    whole = profile_to_json(PROFILE)
    places = [(), ("model",), ("layers", 0), ("types", "turbo4")]
    path = tmp_path / "bad.json"
    tried = 0
    for place in places:
        node = whole
        for key in place:
            node = node[key]
        for missing in node:
            if missing == "evidence":
                continue
            data = copy.deepcopy(whole)
            target = data
            for key in place:
                target = target[key]
            del target[missing]
            path.write_text(json.dumps(data))
            with pytest.raises(UserError, match=f"lacks the key '{missing}'"):
                load_profile(path, GEOMETRY)
            tried += 1
    assert tried == 7 + 3 + 8 + 2


def test_another_model_is_refused_without_fingerprints_too(tmp_path):
    path = tmp_path / "p.json"
    save_profile(PROFILE, path)
    with pytest.raises(UserError, match=r"layers\[0\].kv_heads is 2, the model at hand has 4"):
        load_profile(path, plain(3, kv_heads=4))
