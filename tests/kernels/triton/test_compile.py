"""The Triton kernels compile to sound machine code, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from row_pages import row_layout

from stratakv.kernels.triton import side
from stratakv.kernels.triton.machine_code import Code, read_code
from stratakv.kvtypes import kv_type, type_names

SUPPORT = Path(__file__).parents[2] / "support"
# Bytes of shared memory that a program may have; on 8.6 as on 8.9
SHARED = {80: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
CAPABILITIES = [80, 89, 90, 100]  # of the tests of all types
# head_dim, query heads a kv head, query tokens
SHAPES = [(64, 16, 1), (128, 4, 1), (128, 4, 512), (256, 4, 1), (256, 4, 512), (96, 8, 1)]


def output(script: str, arguments: list[str], cache: Path) -> list[str]:
    """Lines of a script that runs where nothing is interpreted."""
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def check(capability: int, cases: list[str], cache: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output("compiled.py", [str(capability), *cases], cache)]
    assert len([each for each in found if each["what"].startswith("attend")]) == len(cases)
    for each in found:
        assert each["stack"] == 0, f"spills: {each}"
        assert each["registers"] <= 255 and each["shared"] <= SHARED[capability], each
        assert each["narrow"] == [], f"loads of single bytes: {each}"
    return found


def test_some_types_for_an_h100(tmp_path: Path) -> None:
    check(90, ["turbo4/turbo4:128:4:1", "turbo3/q8_0:96:4:512", "f16/q5_1:96:1:1", "tcq4/tcq2:128:4:1"], tmp_path)


def test_codes_are_loaded_16_bytes_at_a_time(tmp_path: Path) -> None:
    """All of these types' in the inner loop, by LDG or LDGSTS of 128 bits. K's entries don't go through shared memory, which
    would take turbo4 and turbo2 11 cycles a row."""
    found = check(90, ["turbo4/turbo2:128:4:1", "q8_0/f16:128:4:1"], tmp_path)
    assert [each["wide"] for each in found if "wide" in each] == [1, 1]
    assert found[0]["cycles"] < 8


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 100])
def test_trellis_types_for_other_cards(capability: int, tmp_path: Path) -> None:
    """Where ptxas, left to itself, spilled."""
    check(capability, ["tcq4/tcq4:128:1:1", "tcq4/tcq4:256:4:1", "tcq6/tcq5:128:4:1"], tmp_path)


@pytest.mark.slow
def test_some_types_for_the_second_blackwell(tmp_path: Path) -> None:
    check(120, ["turbo4/turbo4:128:4:1", "q8_0/f16:128:4:512", "tcq4/tcq3:128:4:1"], tmp_path)


def readable(name: str, dim: int) -> bool:
    return side.refusal(kv_type(name), dim) is None


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_type_in_one_shape(capability: int, tmp_path: Path) -> None:
    """Another shape for each type and capability."""
    cases = []
    for index, name in enumerate(type_names()):
        dim, groups, queries = SHAPES[(index + CAPABILITIES.index(capability)) % len(SHAPES)]
        if readable(name, dim):
            cases.append(f"{name}/{name}:{dim}:{groups}:{queries}")
    check(capability, cases, tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", type_names())
def test_every_type(capability: int, name: str, tmp_path: Path) -> None:
    cases = [
        f"{name}/{other}:{dim}:{groups}:{queries}"
        for dim, groups, queries in SHAPES
        for other in (name, "turbo4", "f16")
        if readable(name, dim)
    ]
    check(capability, cases, tmp_path)


def test_loops_of_a_listing_are_found() -> None:
    listing = """
.L_x_2:
        /*0000*/                   LDG.E.U16 R1, [R4.64] ;
        /*0000*/              @P0  BRA `(.L_x_2) ;
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.U8 R2, [R4.64] ;
        /*0020*/              @P0  FADD R3, R3, R2 ;
        /*0030*/              @!P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   BRA `(.L_x_1);
"""
    whole, loops, largest = read_code(listing)
    assert whole == {"LDG.E.U16": 1, "MOV": 1, "LDG.E.U8": 1, "FADD": 1, "BRA": 3}
    assert loops == {"LDG.E.U16": 1, "LDG.E.U8": 1, "FADD": 1, "BRA": 2}
    assert largest == {"LDG.E.U8": 1, "FADD": 1, "BRA": 1}


def test_wide_accesses_to_shared_memory_take_as_many_cycles_as_they_have_words() -> None:
    loop = Counter(
        {"LDS.128": 2, "STS.U16": 1, "LDSM.16.MT88.4": 1, "STSM.16.M88": 1, "LDGSTS.E.BYPASS.128": 1, "FADD": 9}
    )
    assert Code(1, 0, 0, loop, loop, loop).shared_cycles == 2 * 4 + 1 + 4 + 1 + 4


def test_kernels_of_another_version_are_not_found_in_triton_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is the constants' text: what only properties say must change that, too."""
    layout = row_layout("turbo4", "turbo4", (64, 64))
    texts = []
    for content in (b"one", b"another"):
        for made in (side._digest, side.side_of):
            made.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", lambda self, content=content: content)
            texts.append(str(side.side_of(layout, "k")))
    for made in (side._digest, side.side_of):
        made.cache_clear()
    assert len(set(texts)) == 2
