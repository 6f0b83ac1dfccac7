"""Which build of ggml runs: found, refused in words, chosen by a rule."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from stratakv.weights import ggml

needs_wheel = pytest.mark.skipif(find_spec("libggml") is None, reason="libggml-python has no wheel for this machine")


def say(what: str, **environment: str) -> str:
    """What a fresh process prints."""
    code = f"from stratakv.weights import ggml; print({what})"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "STRATAKV_GGML": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


@needs_wheel
def test_pip_s_wheel_is_opened_and_named() -> None:
    assert say("ggml.running()", STRATAKV_GGML="libggml-python").startswith("libggml-python 0.")


def test_it_can_be_turned_off_and_a_name_that_is_none_is_said() -> None:
    assert say("ggml.unavailable()", STRATAKV_GGML="0") == "STRATAKV_GGML=0"
    assert "allowed are 0 and libggml-python" in say("ggml.unavailable()", STRATAKV_GGML="mine")


@needs_wheel
def test_a_cpu_that_the_wheel_s_code_would_crash_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml.platform, "machine", lambda: "x86_64")
    why = ggml._find(ggml.LIBGGML, ["avx", "avx2"])
    assert why == "libggml-python needs a CPU with fma, f16c"
    assert not isinstance(ggml._find(ggml.LIBGGML, ["avx2", "fma", "f16c"]), str)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml.importlib.util, "find_spec", lambda name: None)
    assert ggml._find(ggml.LIBGGML, []) == "libggml-python is not installed"


@needs_wheel
def test_an_old_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml.importlib.metadata, "version", lambda name: "0.9.4")
    assert ggml._find(ggml.LIBGGML, []) == "libggml-python 0.9.4 is too old, 0.20.2 or later is needed"


IN_ONE_PROCESS = """
from stratakv.weights import ggml
assert ggml.unavailable() is None
import llama_cpp
llama_cpp.llama_backend_init()
"""


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs the extra `gguf`: llama-cpp-python")
def test_llama_cpp_can_be_loaded_beside_it() -> None:
    """After libggml-python's older libraries it couldn't: a process holds one of a name."""
    done = subprocess.run([sys.executable, "-c", IN_ONE_PROCESS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
