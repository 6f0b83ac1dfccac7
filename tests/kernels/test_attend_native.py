"""The compiled kernels without Python around them: `native/attend_check.cpp` and `native/encode_check.cpp` are built and run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from encode_cases import write_cases
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
from page_types import write_types

from stratakv.kernels.native import native

CHECK = Path(__file__).parent / "native"
UNITS = ("attend_portable", "attend_avx512", "attend_avx2", "attend_neon", "features", "encoder")
SOURCES = [PACKAGE / "kernels" / "cpu" / f"{unit}.cpp" for unit in UNITS]
PROGRAMS = [CHECK / "attend_check.cpp", CHECK / "encode_check.cpp"]


def kernel_packings() -> list[str]:
    """All that the compiled module knows; none without it."""
    module = native()
    return list(module.packings()) if module else []


def check(programs: list[Path], kernels: set[str], emulator: tuple[str, ...] = ()) -> None:
    """Runs the programs; `kernels` must have been among those that ran."""
    for program in programs:
        arguments = []
        if program.name == "encode_check":
            arguments = [program.with_name("encode_cases")]
            write_cases(*arguments)
        else:
            arguments = [program.with_name("page_types")]
            assert write_types(*arguments) >= len(kernel_packings())
        ran = subprocess.run([*emulator, program, *arguments], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert kernels <= set(re.findall(r"^(\w+): \d+ runs", ran.stdout, re.MULTILINE)), ran.stdout


@needs_compiler
def test_every_kernel_of_this_machine(tmp_path: Path) -> None:
    # encoding is compared through the module in test_cpu_encode.py
    check(build(COMPILER, tmp_path, SOURCES, PROGRAMS[:1], ["-O1"], FLAGS), native_kernels())


@pytest.mark.slow
@needs_compiler
def test_no_kernel_reads_or_writes_out_of_bounds(tmp_path: Path) -> None:
    check(build(COMPILER, tmp_path, SOURCES, PROGRAMS, SANITIZERS, FLAGS), native_kernels())


@pytest.mark.slow
@needs_emulator
def test_neon_under_emulation(tmp_path: Path) -> None:
    assert EMULATOR is not None
    programs = build(CROSS, tmp_path, SOURCES, PROGRAMS, ["-O1"], ARM_FLAGS, link=("-static",))
    check(programs, {"neon", "portable"}, emulator=(EMULATOR,))
