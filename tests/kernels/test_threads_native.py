"""The pool of threads without Python around it: `native/threads_check.cpp` is built and run, with a thread sanitizer too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "stratakv" / "kernels" / "cpu"
CHECK = Path(__file__).parent / "native" / "threads_check.cpp"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def build(to: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert COMPILER is not None
    files = [str(CHECK), str(SOURCES / "threads.cpp")]
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCES}", *flags, *files]
    return subprocess.run([*command, "-o", str(to)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_callers_children_and_late_threads(tmp_path: Path) -> None:
    built = build(tmp_path / "check", "-O2")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(tmp_path / "check")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_no_data_race(tmp_path: Path) -> None:
    built = build(tmp_path / "check", "-O1", "-g", "-fsanitize=thread")
    if built.returncode and "tsan" in built.stderr:
        pytest.skip("the compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(tmp_path / "check"), "nofork"], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer doesn't run on this kernel")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_same_on_the_threads_of_openmp(tmp_path: Path) -> None:
    built = build(tmp_path / "check", "-O2", "-Wl,--no-as-needed", "-fopenmp")
    if built.returncode and "fopenmp" in built.stderr:
        pytest.skip("the compiler has no OpenMP")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(tmp_path / "check"), "openmp"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


BORROWED = """
import os, torch
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.native import native
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool
import numpy as np

torch.set_num_threads(2)
torch.ones(2**20).sum()  # torch's threads are there now
before = len(os.listdir("/proc/self/task"))
assert native().borrow_openmp()
layout = PageLayout(kv_type("turbo4"), kv_type("turbo4"), 128, 128, 8)
pool = Pool(layout, torch.zeros(4, layout.page_bytes, dtype=torch.uint8))
states = torch.randn(512, 8, 128)
status = torch.zeros(2, dtype=torch.int32)
kernel_for(layout, pool.device).append(pool, states, states, np.arange(512), status)
print(len(os.listdir("/proc/self/task")) - before, bool(pool.memory.any()))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted on Linux")
def test_kernels_on_torch_s_threads_start_none_of_their_own() -> None:
    pytest.importorskip("stratakv._native")
    done = subprocess.run([sys.executable, "-c", BORROWED], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "True"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_torch_finds_threads_that_sleep_soon(given: dict[str, str], found: str) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    code = "import os, sys, stratakv; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found, "False"]


def test_another_program_s_torch_is_left_alone() -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    code = "import os, torch, stratakv; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None"]
