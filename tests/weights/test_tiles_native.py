"""The compiled products without Python around them: `native/tile_check.cpp` is built and run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from native_programs import (
    ARM_FLAGS,
    COMPILER,
    CROSS,
    EMULATOR,
    FLAGS,
    PACKAGE,
    SANITIZERS,
    build,
    native_kernels,
    needs_compiler,
    needs_emulator,
)

TILES = [PACKAGE / "weights" / "cpu" / f"tile_{name}.cpp" for name in ("portable", "avx512", "avx2", "neon")]
SOURCES = [*TILES, PACKAGE / "kernels" / "cpu" / "features.cpp"]
PROGRAM = Path(__file__).parent / "native" / "tile_check.cpp"


def check(program: Path, kernels: set[str], emulator: tuple[str, ...] = ()) -> None:
    """Runs the program; `kernels` must have been among those that ran."""
    ran = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert kernels <= set(re.findall(r"^(\w+): \d+ runs", ran.stdout, re.MULTILINE)), ran.stdout


@pytest.mark.slow
@needs_compiler
def test_every_kernel_reads_only_its_rows_and_agrees_with_the_portable_one(tmp_path: Path) -> None:
    check(*build(COMPILER, tmp_path, SOURCES, [PROGRAM], SANITIZERS, FLAGS), native_kernels())


@pytest.mark.slow
@needs_emulator
def test_neon_under_emulation(tmp_path: Path) -> None:
    assert EMULATOR is not None
    programs = build(CROSS, tmp_path, SOURCES, [PROGRAM], ["-O1"], ARM_FLAGS, link=("-static",))
    check(*programs, {"neon", "portable"}, emulator=(EMULATOR,))
