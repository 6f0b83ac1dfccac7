"""Each target's command, read back by a small interpreter of that target's own rules, gives every layer what was asked for."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from geometries import hybrid, plain, sliding
from hypothesis import given, settings
from hypothesis import strategies as st

import stratakv.export
from stratakv.errors import UserError
from stratakv.export.costs import distance_costs
from stratakv.export.target import NotExpressible, budget
from stratakv.export.targets import OWN, TARGETS, explained, runtimes, target
from stratakv.profile import LayerGeometry, ModelGeometry, Profile, resolve
from stratakv.profile.modes import fork_pairs

GEOMETRIES = [plain(12), hybrid(), sliding(), plain(9, head_dim=64), plain(3), plain(28, q_heads=14)]
NAMES = ("f16", "q8_0", "q4_0", "q4_0_rot", "q8_0_rot", "turbo2", "turbo3", "turbo4", "turbo5", "turbo8")


def variables(line: str) -> tuple[dict[str, str], list[str]]:
    """NAME=VALUE before the command, and the command's words."""
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word in ("llama-server", "vllm"))
    return dict(word.split("=", 1) for word in words[:start]), words[start:]


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def read_fork(line: str, geometry: ModelGeometry) -> tuple[tuple[str, str], ...]:
    environ, words = variables(line)
    base = option(words, "-ctk") or "f16", option(words, "-ctv") or "f16"
    pairs, _ = fork_pairs(int(environ["TURBO_LAYER_ADAPTIVE"]), geometry, base, environ)
    return pairs


def read_ik(line: str, geometry: ModelGeometry) -> tuple[tuple[str, str], ...]:
    """First N, last N, the rest, over all layers of the model; a Hadamard option rotates the quantized types of its side."""
    _, words = variables(line)
    count, sides = len(geometry.layers), []
    for letter in "kv":
        types = [option(words, f"-ct{letter}") or "f16"] * count
        for end in ("first", "last"):
            if given := option(words, f"-ct{letter}-{end}"):
                name, size = given.split(",")
                for i in range(int(size)):
                    types[i if end == "first" else count - 1 - i] = name
        if f"-{letter}had" in words:
            types = [name if name in ("f16", "bf16") else f"{name}_rot" for name in types]
        sides.append([types[layer.layer] for layer in geometry.kv_layers])
    return tuple(zip(*sides, strict=True))


def read_buun(line: str, geometry: ModelGeometry) -> tuple[tuple[str, str], ...]:
    environ, words = variables(line)
    assert environ["VBR_LAYER_STRICT"] == "1"
    types = [[option(words, "-ctk"), option(words, "-ctv")] for _ in geometry.layers]
    for item in environ["VBR_LAYER_SCHEDULE"].split(";"):
        if item.startswith("default="):
            types = [[item.removeprefix("default=")] * 2 for _ in types]
            continue
        found = re.fullmatch(r"band=0-8192:(\w+):([kv]):l(\d+)-(\d+)", item)
        assert found, item
        for layer in range(int(found[3]), int(found[4]) + 1):
            types[layer]["kv".index(found[2])] = found[1]
    return tuple(
        tuple(
            str(name).removesuffix("_0") if str(name).startswith("turbo") else str(name) for name in types[layer.layer]
        )
        for layer in geometry.kv_layers
    )


def read_vllm(line: str, geometry: ModelGeometry) -> tuple[tuple[str, str], ...]:
    _, words = variables(line)
    presets = {
        "k8v4": ("q8_0", "turbo4"),
        "4bit": ("turbo4", "turbo4"),
        "k3v4": ("turbo3", "turbo4"),
        "3bit": ("turbo3", "turbo3"),
    }
    dtype = option(words, "--kv-cache-dtype") or "auto"
    if dtype == "auto":
        return (("f16", "f16"),) * len(geometry.kv_layers)
    start = words.index("--kv-cache-dtype-skip-layers") + 1 if "--kv-cache-dtype-skip-layers" in words else len(words)
    skipped = {int(word) for word in words[start:]}
    count = len(geometry.layers)
    if count == len(geometry.kv_layers):
        edge = min(2, count // 2)
        skipped |= {*range(edge), *range(count - edge, count)}
    pair = presets[dtype.split("_")[1]]
    return tuple(("f16", "f16") if layer.layer in skipped else pair for layer in geometry.kv_layers)


def test_vllm_s_plugin_is_told_the_same_profile() -> None:
    profile = resolve("first2,last2: f16/q8_0; rest: turbo4", plain(12))
    with pytest.raises(NotExpressible) as found:
        target("vllm").command(profile, "model")
    said = str(found.value).rpartition(": vllm serve ")[2]
    option = json.loads(shlex.split(said)[-1])
    assert resolve(option["stratakv_profile"], plain(12)).pairs == profile.pairs
    command = target("vllm").command(resolve("f16", plain(12)), "model")
    assert command.notes[-1].endswith("""--additional-config '{"stratakv_profile": "f16"}'""")
    assert "refuses" in target("vllm").command(resolve("f16", hybrid()), "model").notes[-1]


READERS = {"fork": read_fork, "ik": read_ik, "buun": read_buun, "vllm": read_vllm}


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Runs of random pairs, so that some are expressible."""
    geometry = draw(st.sampled_from(GEOMETRIES))
    count = len(geometry.kv_layers)
    pair = st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES))
    pairs = [draw(pair)] * count
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, count - 1))
        end = draw(st.integers(start, count))
        pairs[start:end] = [draw(pair)] * (end - start)
    return Profile("drawn", geometry, tuple(pairs))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None)
@given(profile=profiles())
def test_a_command_means_the_profile_and_an_offer_is_expressible(name, profile):
    goal = target(name)
    try:
        command = goal.command(profile, "m.gguf")
    except NotExpressible:
        pass
    else:
        assert READERS[name](command.text, profile.geometry) == profile.pairs
        return
    offered = Profile("offer", profile.geometry, goal.nearest(profile, distance_costs(profile)))
    assert READERS[name](goal.command(offered, "m.gguf").text, profile.geometry) == offered.pairs
    smallest = {"fork": "turbo2", "buun": "turbo2", "ik": "q4_0"}.get(name)
    if smallest and goal.bytes_per_token(offered) > budget(profile):
        assert goal.bytes_per_token(offered) <= goal.bytes_per_token(resolve(smallest, profile.geometry))


def test_what_can_be_said_without_a_loss_is_not_an_offer():
    for name in READERS:
        profile = resolve("f16", plain(12))
        assert READERS[name](target(name).command(profile, "m").text, profile.geometry) == profile.pairs


@pytest.mark.parametrize("number", [0, 1, 2, 5, 6, 7])
def test_the_forks_own_modes_on_a_hybrid_model_are_its_raw_layers(number):
    geometry = hybrid()
    pairs, _ = fork_pairs(number, geometry, ("turbo4", "turbo4"), {"TURBO_AUTO_ASYMMETRIC": "0"})
    line = target("fork").command(Profile("p", geometry, pairs), "m.gguf").text
    assert read_fork(line, geometry) == pairs


def test_the_forks_silent_rules_are_switched_off():
    line = target("fork").command(resolve("turbo4", plain(12, q_heads=12)), "m").text
    assert line.startswith("TURBO_LAYER_ADAPTIVE=0 TURBO_AUTO_ASYMMETRIC=0 llama-server")
    assert (
        target("fork")
        .command(resolve("f16/turbo2", plain(12)), "m")
        .text.startswith("TURBO_LAYER_ADAPTIVE=0 llama-server")
    )


def test_latents_are_refused_by_runtimes_without_them():
    layers = tuple(LayerGeometry(i, i, "mla", (512, 64), 1, 16) for i in range(4))
    profile = resolve("turbo4", ModelGeometry("mla", layers))
    for name in READERS:
        with pytest.raises(UserError, match="MLA"):
            target(name).command(profile, "m")
        with pytest.raises(UserError, match="MLA"):
            target(name).nearest(profile, distance_costs(profile))


def test_an_unknown_target():
    with pytest.raises(UserError, match=", ".join(TARGETS)):
        target("ollama")


def test_users_are_told_of_every_target_as_before():
    assert (
        explained() == "fork (llama.cpp with turbo types), ik (ik_llama.cpp), buun, vllm, or stratakv: a profile file"
    )
    assert runtimes() == "fork, ik, buun or vllm"


def test_every_listed_target_is_there_and_no_other_module_is_one():
    modules = {path.stem for path in Path(stratakv.export.__file__).parent.glob("*.py")}
    found = {name for name in modules - {"__init__"} if hasattr(import_module(f"stratakv.export.{name}"), "TARGET")}
    assert found == set(TARGETS) == {*READERS, OWN}
