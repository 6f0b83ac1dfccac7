"""Run language models with long contexts in little memory: every layer's K and V cache in a storage type of its own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratakv.engine.attention import use
    from stratakv.engine.cache import KVCache
    from stratakv.engine.load import LoadedModel, load_model
    from stratakv.errors import UserError
    from stratakv.kvtypes import KVType, kv_type, type_names
    from stratakv.profile import Profile, resolve

__version__ = "0.1.0"

__all__ = [
    "KVCache",
    "KVType",
    "LoadedModel",
    "Profile",
    "UserError",
    "kv_type",
    "load_model",
    "resolve",
    "type_names",
    "use",
]

_HOMES = {
    "KVCache": "engine.cache",
    "KVType": "kvtypes",
    "LoadedModel": "engine.load",
    "Profile": "profile",
    "UserError": "errors",
    "kv_type": "kvtypes",
    "load_model": "engine.load",
    "resolve": "profile",
    "type_names": "kvtypes",
    "use": "engine.attention",
}


# gcc's OpenMP reads this when torch loads it, so it comes before torch. Its threads spin for milliseconds after each of torch's
# loops, on the cores that the kernels want, and beside busy programs each loop waits for whichever of them was stopped.
# Where torch is loaded it belongs to another program (vLLM, which loads its plugins), whose children would be changed.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: torch and transformers take seconds, `--help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stratakv' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"stratakv.{_HOMES[name]}"), name)
