"""Options -> profile: defaults, the mode's two sources, and options that contradict each other."""

from __future__ import annotations

import argparse

import pytest
from geometries import plain

from stratakv.cli.profile_options import add_profile_options, profile_from_args
from stratakv.errors import UserError

GEOMETRY = plain(12)


def chosen(*options, environ=None):
    parser = argparse.ArgumentParser()
    add_profile_options(parser)
    return profile_from_args(parser.parse_args(options), GEOMETRY, "abc", environ or {})


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


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        (["--profile", "turbo4", "--layer-adaptive", "1"], {}, "--profile and --layer-adaptive were both given"),
        (["--profile", "edges3", "-ctk", "turbo4"], {}, "--profile edges3 already names every layer's types"),
        (["--layer-adaptive", "x"], {}, "--layer-adaptive x is not a whole number: give a mode, 0, 1, 2, 5, 6 or 7"),
        (["--layer-adaptive", "3"], {}, "unknown mode 3: allowed are 0, 1, 2, 5, 6, 7"),
        ([], {"TURBO_LAYER_ADAPTIVE": "on"}, "TURBO_LAYER_ADAPTIVE=on is not a whole number"),
        (["-ctk", "turbo9"], {}, "turbo9"),
        (["--profile", "0: q8_0"], {}, "no K type for KV layers 1-11"),
    ],
)
def test_mistakes(options, environ, message):
    with pytest.raises(UserError, match=message):
        chosen(*options, environ=environ)
