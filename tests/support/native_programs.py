"""Programs that check compiled kernels without Python around them: compiled with the flags that CMakeLists.txt gives."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "stratakv"

X86 = platform.machine().lower() in {"x86_64", "amd64"}
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

# As in CMakeLists.txt: every kernel's file has the flags of its instruction set.
_AVX512_PARTS = ["f", "bw", "dq", "vl", "vbmi", "vbmi2", "vnni"]
_AVX512 = [*(f"-mavx512{part}" for part in _AVX512_PARTS), "-mfma", "-mf16c"]
X86_FLAGS = {
    "avx512": [*_AVX512, "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}
ARM_FLAGS = {"neon": ["-march=armv8.2-a+dotprod"]}
FLAGS = X86_FLAGS if X86 else ARM_FLAGS
SANITIZERS = ["-O1", "-g1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
needs_emulator = pytest.mark.skipif(
    platform.machine() == "aarch64" or shutil.which(CROSS) is None or EMULATOR is None,
    reason="on x86 only, with Debian's g++-aarch64-linux-gnu and qemu-user-static",
)


def build(
    compiler: str | None,
    to: Path,
    sources: list[Path],
    programs: list[Path],
    flags: list[str],
    special: dict[str, list[str]],
    link: tuple[str, ...] = (),
) -> list[Path]:
    """Compiles every source with `flags` and those of its instruction set (the name's end), two at a time; links the programs."""
    assert compiler is not None

    def compile_unit(source: Path) -> Path:
        includes = [f"-I{folder}" for folder in dict.fromkeys(path.parent for path in sources)]
        command = [
            compiler,
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-ffp-contract=off",
            "-DSTRATAKV_CHECKED",
            *includes,
            *flags,
        ]
        target = to / f"{source.stem}.o"
        own = special.get(source.stem.rpartition("_")[2], [])
        done = subprocess.run([*command, *own, "-c", source, "-o", target], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_unit, [*sources, *programs]))
    for program, made in zip(programs, objects[len(sources) :], strict=True):
        subprocess.run([compiler, *flags, *link, *objects[: len(sources)], made, "-o", to / program.stem], check=True)
    return [to / program.stem for program in programs]


def native_kernels() -> set[str]:
    """Instruction sets that the processor can run, by what Linux says of it."""
    path = Path("/proc/cpuinfo")
    features = set(path.read_text().split()) if path.exists() else set()
    needs = {
        "avx512": {"avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vbmi2", "avx512_vnni"},
        "avx2": {"avx2", "fma", "f16c"},
        "neon": {"asimddp"},
    }
    return {name for name, needed in needs.items() if needed <= features} | {"portable"}
