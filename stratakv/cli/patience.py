"""One line for who waits: a command that is still silent after half a second says what it is about."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stratakv.sizes import size_text

DELAY_SECONDS = 0.5


@contextmanager
def patience(command: str, args: argparse.Namespace) -> Iterator[None]:
    """While it is open, and for longer than DELAY_SECONDS, a line on stderr."""
    timer = threading.Timer(DELAY_SECONDS, _say, (f"stratakv {command}: {_about(args)}",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _about(args: argparse.Namespace) -> str:
    model = getattr(args, "model", None)
    if not isinstance(model, str):
        return "starting"
    path = Path(model)
    try:
        size = f", {size_text(path.stat().st_size)}" if path.is_file() else ""
    except OSError:
        size = ""
    return f"reading {path.name if size else model}{size}"


def _say(text: str) -> None:
    if sys.stderr is not None:  # None: the caller closed it
        print(text, file=sys.stderr, flush=True)
