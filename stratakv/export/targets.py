"""The targets by the name that --to takes, in the order that users read; each is the module of its name, with its TARGET.

Commands and pages read names and words here without importing what a target needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stratakv.errors import UserError

if TYPE_CHECKING:
    from stratakv.export.target import Target

OWN = "stratakv"
TARGETS = {  # the words of --help about it
    "fork": " (llama.cpp with turbo types)",
    "ik": " (ik_llama.cpp)",
    "buun": "",
    "vllm": "",
    OWN: ": a profile file",
}


def target(name: str) -> Target:
    """The target of that name. Raises UserError for another one."""
    if name not in TARGETS:
        raise UserError(f"unknown target {name!r}: allowed are {', '.join(TARGETS)}")
    found: Target = import_module(f"stratakv.export.{name}").TARGET
    return found


def explained() -> str:
    """'a (words), b, or c: words'."""
    *first, last = (name + words for name, words in TARGETS.items())
    return f"{', '.join(first)}, or {last}"


def runtimes() -> str:
    """Those of other people: 'a, b or c'."""
    *first, last = (name for name in TARGETS if name != OWN)
    return f"{', '.join(first)} or {last}"
