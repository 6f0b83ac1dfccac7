"""The compiled kernels without Python around them: `native/attend_check.cpp` and `native/encode_check.cpp` are built and run."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from encode_cases import write_cases

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "stratakv" / "kernels" / "cpu"
CHECK = Path(__file__).parent / "native"

X86 = platform.machine().lower() in {"x86_64", "amd64"}
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

# As in CMakeLists.txt: every kernel's file has the flags of its instruction set.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni", "-mfma", "-mf16c"]
X86_FLAGS = {
    "attend_avx512": [*AVX512, "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
    "attend_avx2": ["-mavx2", "-mfma", "-mf16c"],
}
ARM_FLAGS = {"attend_neon": ["-march=armv8.2-a+dotprod"]}
UNITS = ("attend_portable", "attend_avx512", "attend_avx2", "attend_neon", "features", "encoder")
PROGRAMS = ("attend_check", "encode_check")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def build(
    compiler: str,
    to: Path,
    flags: list[str],
    special: dict[str, list[str]],
    programs: tuple[str, ...] = PROGRAMS,
    link: tuple[str, ...] = (),
) -> list[Path]:
    """Compiles every unit with `flags` and its own, two at a time, and links the checking programs."""

    def compile_unit(unit: str) -> Path:
        source = (CHECK if unit in PROGRAMS else SOURCES) / f"{unit}.cpp"
        command = [
            compiler,
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-ffp-contract=off",
            f"-I{SOURCES}",
            *flags,
            *special.get(unit, []),
        ]
        done = subprocess.run(
            [*command, "-c", source, "-o", to / f"{unit}.o"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return to / f"{unit}.o"

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_unit, (*UNITS, *programs)))
    shared = objects[: len(UNITS)]
    for name in programs:
        subprocess.run([compiler, *flags, *link, *shared, to / f"{name}.o", "-o", to / name], check=True)
    return [to / name for name in programs]


def check(programs: list[Path], kernels: set[str], emulator: tuple[str, ...] = ()) -> None:
    """Runs the programs; `kernels` must have been among those that ran."""
    for program in programs:
        arguments = []
        if program.name == "encode_check":
            arguments = [program.with_name("encode_cases")]
            write_cases(*arguments)
        ran = subprocess.run([*emulator, program, *arguments], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert kernels <= set(re.findall(r"^(\w+): \d+ runs", ran.stdout, re.MULTILINE)), ran.stdout


def native_kernels() -> set[str]:
    """Those that the processor can run, by what Linux says of it."""
    path = Path("/proc/cpuinfo")
    features = set(path.read_text().split()) if path.exists() else set()
    needs = {
        "avx512": {"avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni"},
        "avx2": {"avx2", "fma", "f16c"},
        "neon": {"asimddp"},
    }
    return {name for name, needed in needs.items() if needed <= features} | {"portable"}


@needs_compiler
def test_every_kernel_of_this_machine(tmp_path: Path) -> None:
    assert COMPILER is not None
    # encoding is compared through the module in test_cpu_encode.py
    programs = build(COMPILER, tmp_path, ["-O1"], X86_FLAGS if X86 else ARM_FLAGS, programs=("attend_check",))
    check(programs, native_kernels())


@pytest.mark.slow
@needs_compiler
def test_no_kernel_reads_or_writes_out_of_bounds(tmp_path: Path) -> None:
    assert COMPILER is not None
    flags = ["-O1", "-g1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    check(build(COMPILER, tmp_path, flags, X86_FLAGS if X86 else ARM_FLAGS), native_kernels())


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() == "aarch64", reason="runs without emulation here, in the first test")
@pytest.mark.skipif(
    shutil.which(CROSS) is None or EMULATOR is None, reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static"
)
def test_neon_under_emulation(tmp_path: Path) -> None:
    assert EMULATOR is not None
    programs = build(CROSS, tmp_path, ["-O1"], ARM_FLAGS, link=("-static",))
    check(programs, {"neon", "portable"}, emulator=(EMULATOR,))
