"""Options -> profile: defaults, the mode's two sources, and options that contradict each other."""

from __future__ import annotations

import argparse

import pytest
from geometries import plain

from stratakv.cli.profile_options import add_profile_options, profile_from_args
from stratakv.errors import UserError
from stratakv.profile import Spans
from stratakv.profile.files import save_profile

GEOMETRY = plain(12)


def chosen(*options, environ=None, literal=True):
    parser = argparse.ArgumentParser()
    add_profile_options(parser)
    return profile_from_args(parser.parse_args(options), GEOMETRY, "abc", environ or {}, literal=literal)


def test_uniform_types():
    assert (chosen().name, chosen().fingerprint) == ("f16", "abc")
    assert chosen("-ctk", "q8_0").name == "q8_0/f16"
    assert chosen("--cache-type-k", "q8_0", "--cache-type-v", "turbo4").name == "q8_0/turbo4"


def test_layer_adaptive_over_the_base_types():
    profile = chosen("-ctk", "turbo4", "-ctv", "turbo4", "--layer-adaptive", "7")
    assert profile.name == "mode 7"
    assert profile.pairs[0] == ("turbo4", "q8_0")
    assert "mode 7 does nothing" in chosen("--layer-adaptive", "7").warnings[0]


def test_the_variable_and_the_option():
    turbo = ("-ctk", "turbo4", "-ctv", "turbo4")
    assert chosen(*turbo, environ={"TURBO_LAYER_ADAPTIVE": "1"}).name == "mode 1"
    both = chosen(*turbo, "--layer-adaptive", "2", environ={"TURBO_LAYER_ADAPTIVE": "1"})
    assert both.name == "mode 2"
    assert both.warnings == ("--layer-adaptive 2 wins over TURBO_LAYER_ADAPTIVE=1",)
    assert chosen(*turbo, "--layer-adaptive", "1", environ={"TURBO_LAYER_ADAPTIVE": "1"}).warnings == ()
    assert chosen(*turbo, environ={"TURBO_LAYER_ADAPTIVE": ""}).name == "turbo4"
    ignored = chosen("--profile", "turbo4", environ={"TURBO_LAYER_ADAPTIVE": "1"})
    assert ignored.warnings == ("TURBO_LAYER_ADAPTIVE=1 is ignored, --profile wins",)


def test_profile_texts():
    assert chosen("--profile", "edges3").name == "edges3"
    assert chosen("--profile", "0: q8_0", "-ctk", "turbo4").pairs[:2] == (("q8_0", "q8_0"), ("turbo4", "f16"))


def test_compat_tells_a_mode_of_0_from_no_mode():
    turbo = ("-ctk", "turbo4", "-ctv", "turbo2", "--compat", "fork")
    assert chosen(*turbo).pairs[0] == ("turbo4", "q8_0")
    assert chosen(*turbo, "--layer-adaptive", "0").pairs[0] == ("turbo4", "turbo2")
    assert chosen(*turbo, environ={"TURBO_LAYER_ADAPTIVE": "0"}).pairs[0] == ("turbo4", "turbo2")


def by_default(*options):
    """The spans of an argument list, without and with --recent 0, and whether it is said that they are a default."""
    profile = chosen(*options, literal=False)
    assert not any(chosen(*options, "--recent", "0", literal=False).spans)
    return set(profile.spans), any("by default" in note for note in profile.notes)


@pytest.mark.parametrize(
    "options",
    [
        ("-ctk", "turbo4", "-ctv", "tcq3"),
        ("--layer-adaptive", "7", "-ctk", "turbo4", "-ctv", "turbo4"),
        ("--profile", "edges3"),
    ],
)
def test_quantized_types_have_spans_by_default(options):
    assert by_default(*options) == ({Spans(1, first=1)}, True)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-ctk", "q8_0", "-ctv", "q8_0"),
        ("-ctk", "turbo4", "-ctv", "turbo4", "--compat", "fork"),
        ("--profile", "turbo4; first: 0 pages"),
        ("--profile", "0: turbo4, recent 0 pages; rest: turbo4"),
    ],
)
def test_what_has_none_by_default(options):
    assert by_default(*options) == ({Spans()}, False)


def test_a_file_means_what_it_says(tmp_path):
    save_profile(chosen("--profile", "turbo4"), tmp_path / "first.profile.json")
    assert not any(chosen("--profile", str(tmp_path / "first.profile.json"), literal=False).spans)


def test_a_context_shorter_than_the_default_spans_has_none():
    parser = argparse.ArgumentParser()
    add_profile_options(parser)
    parser.add_argument("-c", dest="ctx_size", type=int)
    for context, spans in ((255, Spans()), (256, Spans(1, first=1)), (0, Spans(1, first=1))):
        args = parser.parse_args(["--profile", "turbo4", "-c", str(context)])
        assert set(profile_from_args(args, GEOMETRY, "abc", {}).spans) == {spans}


def test_spans_over_any_profile():
    turbo = ("-ctk", "turbo4", "-ctv", "turbo4")
    both = chosen(*turbo, "--recent", "2", "--first", "1:turbo8")
    assert both.name == "turbo4; recent: 2 pages turbo8; first: 1 page turbo8"
    assert set(both.spans) == {Spans(2, first=1)}
    line = chosen("--profile", "rest: turbo4; recent: 2 pages turbo8; first: 1 page turbo8", "--recent", "0")
    assert (line.name, set(line.spans)) == ("rest: turbo4; first: 1 page turbo8", {Spans(first=1)})
    assert set(chosen("--profile", "edges3", "--recent", "1:f16").spans) == {Spans(1, "f16")}
    assert chosen("-ctk", "turbo4", "-ctv", "turbo4", "--profile", "recent: 1 page").spans[0] == Spans(1)
    assert not any(chosen(*turbo, "--recent", "0").spans)
    assert chosen(*turbo, "--compat", "fork", "--recent", "0").compat_fork


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        (["--profile", "turbo4", "--layer-adaptive", "1"], {}, "--profile and --layer-adaptive were both given"),
        (["--profile", "edges3", "-ctk", "turbo4"], {}, "--profile edges3 already names every layer's types"),
        (["--layer-adaptive", "x"], {}, "--layer-adaptive x is not a whole number: give a mode, 0, 1, 2, 5, 6 or 7"),
        (["--layer-adaptive", "3"], {}, "unknown mode 3: allowed are 0, 1, 2, 5, 6, 7"),
        ([], {"TURBO_LAYER_ADAPTIVE": "on"}, "TURBO_LAYER_ADAPTIVE=on is not a whole number"),
        (["-ctk", "turbo9"], {}, "turbo9"),
        (["-ctk", "turbo4", "--profile", "turbo4; recent: 1 page"], {}, "already names every layer's types"),
        (
            ["--recent", "2"],
            {},
            r"no layer can have the spans 'recent: 2 pages turbo8': .* f16 is as fine as turbo8: give coarser types \(-ctk",
        ),
        (["-ctk", "turbo4", "--recent", "-1"], {}, "--recent -1: '-1' is no number of pages: give 0"),
        (["-ctk", "turbo4", "--recent", "0:turbo8"], {}, "--recent 0:turbo8: 0 pages of turbo8: leave the type out"),
        (["-ctk", "turbo4", "--first", "1:turbo9"], {}, "--first 1:turbo9: .*turbo9.*turbo8"),
        (["-ctk", "turbo4", "--first", "1:"], {}, "--first '1:': write PAGES or PAGES:TYPE, such as 2 or 2:turbo8; 0"),
        (["-ctk", "turbo4", "--first", ""], {}, "--first '': write PAGES or PAGES:TYPE"),
        (["-ctk", "turbo4", "--first", "1.5"], {}, "--first 1.5: '1.5' is no number of pages"),
        (
            ["-ctk", "turbo4", "--recent", "1:f16", "--first", "1"],
            {},
            "of one type, turbo8 where none is said: say the same for both",
        ),
        (["-ctk", "turbo4", "--recent", "33"], {}, r"spans of 33 pages \(4,224 tokens\) are longer than the context"),
        (["-ctk", "turbo4", "-ctv", "turbo4", "--compat", "fork", "--first", "1"], {}, "the fork has no spans"),
        (["--profile", "0: q8_0"], {}, "no K type for KV layers 1-11"),
    ],
)
def test_mistakes(options, environ, message):
    with pytest.raises(UserError, match=message):
        chosen(*options, environ=environ)
