from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nanobind.stubgen import StubGen

from stratakv.kernels.native import native

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "stratakv" / "kernels" / "cpu"


@pytest.fixture
def fresh_native() -> Iterator[None]:
    """The cached answer of `native()` is forgotten before and after the test."""
    native.cache_clear()
    yield
    native.cache_clear()


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch, fresh_native: None) -> None:
    monkeypatch.setitem(sys.modules, "stratakv._native", None)  # importing it raises ModuleNotFoundError


@pytest.mark.usefixtures("without_native")
def test_a_missing_module_is_said_once() -> None:
    with pytest.warns(RuntimeWarning, match="plain torch") as caught:
        assert native() is None
        assert native() is None
    assert len(caught) == 1


def built() -> bool:
    try:
        importlib.import_module("stratakv._native")
    except ImportError:
        return False
    return True


@pytest.mark.skipif(not built(), reason="installed without a C++ compiler")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the features are compared with Linux's list")
def test_features_are_what_the_kernel_reports() -> None:
    module = native()
    assert module is not None
    found = set(module.cpu_features())
    listed = set(Path("/proc/cpuinfo").read_text().split())
    linux = {"avx512_vbmi": "avx512vbmi", "neon": "asimd", "dotprod": "asimddp", "fp16": "asimdhp"}
    known = (SOURCES / "features.cpp").read_text()
    assert {linux.get(name, name) for name in found} <= listed
    missed = {name for name in listed - {linux.get(name, name) for name in found} if f'"{name}"' in known}
    assert not missed


@pytest.mark.skipif(not built(), reason="installed without a C++ compiler")
def test_the_stub_is_the_module_s() -> None:
    stubs = StubGen(importlib.import_module("stratakv._native"))
    stubs.put(stubs.module)
    found, kept = (ast.dump(ast.parse(text)) for text in (stubs.get(), (ROOT / "stratakv" / "_native.pyi").read_text()))
    assert found == kept, "python -m nanobind.stubgen -m stratakv._native -o stratakv/_native.pyi, then ruff format"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs CMake and Ninja")
@pytest.mark.parametrize("compiler", [None, "/no/such/compiler"])
def test_a_wheel_is_complete_with_and_without_a_compiler(tmp_path: Path, compiler: str | None) -> None:
    environment = os.environ | ({"CXX": compiler} if compiler else {})
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert any(name.startswith("stratakv/_native.") and name.endswith(".so") for name in names) == (compiler is None)
    assert {"stratakv/py.typed", "stratakv/assets/strata-8m-q8_0.gguf", "stratakv/assets/dracula-tune.txt"} <= set(
        names
    )
    assert not [name for name in names if name.endswith((".cpp", ".h"))]

    # -S and -I: nothing of an installed or checked-out stratakv is in reach, the rest of the environment is added.
    code = (
        f"import sys; sys.path[:0] = {[str(tmp_path / 'site'), *[p for p in sys.path if 'site-packages' in p]]!r}\n"
        "import stratakv.kernels.native as n; n.native(); print(n.native() is not None, n.__file__)"
    )
    ran = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(compiler is None), str(tmp_path / "site" / "stratakv" / "kernels" / "native.py")]
    assert ran.stderr.count("plain torch") == (0 if compiler is None else 1)
