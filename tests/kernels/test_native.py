from __future__ import annotations

import ast
import importlib
import sys
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
