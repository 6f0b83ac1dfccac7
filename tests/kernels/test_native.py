from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from stratakv.kernels.native import cpu_model, machine, native

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


@pytest.mark.usefixtures("without_native")
def test_the_machine_is_described_without_the_module() -> None:
    with pytest.warns(RuntimeWarning, match="plain torch"):
        described = machine()
    assert described["features"] == []
    assert described["compiler"] is None


@pytest.mark.usefixtures("fresh_native")
def test_machine_names_what_results_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is not built everywhere
        described = machine()
    assert described["cpu"] == cpu_model() != ""
    assert described["memory"] == psutil.virtual_memory().total
    assert described["threads"] == torch.get_num_threads()
    assert described["torch"] == torch.__version__
    assert described["malloc"]["MALLOC_TOP_PAD_"] == "4096"
    assert 1 <= described["cores"] <= described["logical_cores"]


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
