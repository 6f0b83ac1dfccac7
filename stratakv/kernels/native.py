"""The compiled module, if it was built."""

from __future__ import annotations

import atexit
import functools
import importlib
import sys
import warnings
from types import ModuleType


@functools.cache
def native() -> ModuleType | None:
    """The compiled module `stratakv._native`, or None where the package was installed without a C++ compiler.

    The lack of it is said once a process, as a `RuntimeWarning`: everything runs in plain torch then, slower.
    """
    try:
        module = importlib.import_module("stratakv._native")
        atexit.register(_forget_layouts)
        return module
    except ImportError as error:
        warnings.warn(
            f"stratakv runs in plain torch, slower: no compiled module ({error}). "
            "Install a C++17 compiler, then stratakv again.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _forget_layouts() -> None:
    """Compiled objects have to go before the interpreter takes their module apart: nanobind reports them as leaks."""
    layouts = sys.modules.get("stratakv.kernels.cpu.layout")
    if layouts is not None:
        layouts.native_layout.cache_clear()
