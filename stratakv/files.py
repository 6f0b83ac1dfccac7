"""How result files are written: in one step, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from stratakv.errors import UserError

_FAILURES = (OSError, RuntimeError)  # links that go round are a RuntimeError of pathlib's before Python 3.13


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file in one step: the whole new one is there afterwards, or what was there before. Raises UserError.

    A link stays, its target is written. Devices and pipes, such as /dev/stdout, get the content.
    """
    path, temporary = Path(path), None
    try:
        if _is_stream(path):
            with path.open("ab") as file:
                file.write(content)
            return
        path = path.resolve()
        handle, temporary = _beside(path)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)  # mkstemp's files are for their owner only
        os.replace(temporary, path)
        temporary = None
    except _FAILURES as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Refuse a place that cannot be written before minutes of work are spent. Raises UserError."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a directory, give a file")
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise UserError(f"cannot write {path}: it takes nothing from you, give a file")
            return
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: there is no directory {path.parent}, make it first")
        handle, temporary = _beside(path.resolve())  # permissions alone say nothing of /proc, quotas and long names
        os.close(handle)
        Path(temporary).unlink()
    except _FAILURES as error:
        raise UserError(f"cannot write {path}: {_reason(error)}; give another place") from error


def check_directory(path: str | Path, option: str) -> None:
    """The same of a directory that results go to. option: what names it, for the message."""
    try:
        if not Path(path).is_dir():
            raise UserError(f"{option} {path}: there is no such directory, make it first")
        tempfile.TemporaryFile(dir=path).close()
    except _FAILURES as error:
        raise UserError(f"{option} {path} can't be written to: {_reason(error)}; give another place") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _beside(path: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


def _is_stream(path: Path) -> bool:
    """Whether it is there and can't be replaced; what a shell sends /dev/stdout to may well be a file."""
    opened = str(path.absolute()).startswith(("/dev/std", "/dev/fd/", "/proc/self/fd/"))
    return path.exists() and (opened or not path.is_file())
