"""What the JSON of every benchmark has around its rows, so that its numbers can be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stratakv import __version__
from stratakv.bench.timing import load_warnings
from stratakv.machine import machine

Report = Callable[[str], None]
"""Takes a line about what is measured next."""


def quiet(line: str) -> None:
    """Report nothing."""


def result(
    schema: str,
    measured: Mapping[str, Any],
    *,
    command: str,
    load: float | None,
    warnings: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """The data of `--json`: schema and version, what was measured, then its conditions. load: the load average at the start."""
    return {
        "schema": schema,
        "stratakv": __version__,
        **measured,
        "command": command,
        "machine": machine(),
        "load_average": load,
        "warnings": [*load_warnings(load), *warnings],
        "notes": list(notes),
    }
