"""The harness's command line with our model registered: it has no other way to find one that isn't its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lm_eval.__main__ import cli_evaluate

import stratakv.lm_eval  # noqa: F401, registers the model

_NAMES_A_MODEL = ("--model", "-M", "--config", "-C")


def run(arguments: Sequence[str]) -> None:
    """Run `lm_eval ARGUMENTS`. Where these name no model, and no file that may, it is `stratakv` and not the harness's `hf`."""
    words = list(arguments)
    evaluates = bool(words) and words[0] not in ("ls", "validate", "-h", "--help")
    if evaluates and not any(word.split("=")[0] in _NAMES_A_MODEL for word in words):
        words += ["--model", "stratakv"]
    before = sys.argv
    sys.argv = ["lm_eval", *words]  # the harness reads, and changes, nothing else
    try:
        cli_evaluate()
    finally:
        sys.argv = before
