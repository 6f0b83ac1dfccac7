"""A mapped file that changes under us: errors in words, and the process lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stratakv import UserError
from stratakv.kernels.native import native
from stratakv.weights.mapped_file import MappedFile

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(range(256)) * 64)
    return file


def test_an_unchanged_file_is_fine(path: Path) -> None:
    mapped = MappedFile(path)
    mapped.check()
    assert mapped.size == 256 * 64


def test_a_cut_file_is_an_error(path: Path) -> None:
    mapped = MappedFile(path)
    os.truncate(path, 100)
    with pytest.raises(UserError, match=r"was cut or rewritten while it was in use: it had 16,384 bytes, now 100"):
        mapped.check()


def test_a_file_written_to_is_an_error(path: Path) -> None:
    mapped = MappedFile(path)
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="was written to while it was in use"):
        mapped.check()


def test_a_removed_file_stays_readable_and_that_is_said_once(path: Path, recwarn: pytest.WarningsRecorder) -> None:
    mapped = MappedFile(path)
    path.unlink()
    mapped.check()
    mapped.check()
    assert [str(warning.message) for warning in recwarn if "was removed" in str(warning.message)] == [
        f"{path} was removed; this process goes on with its weights, the next one won't find them"
    ]


def test_nothing_to_map_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(UserError, match="can't be mapped into memory"):
        MappedFile(tmp_path / "empty.gguf")


@pytest.mark.skipif(native() is None, reason="the guard is part of the compiled module")
def test_a_read_beyond_a_cut_file_ends_in_an_error_and_not_the_process(path: Path) -> None:
    code = f"""
import ctypes, os, sys
from pathlib import Path
from stratakv import UserError
from stratakv.weights.mapped_file import MappedFile
mapped = MappedFile(Path({str(path)!r}))
os.truncate({str(path)!r}, 10)
assert ctypes.string_at(mapped.address + {2 * PAGE}, 4) == bytes(4)  # without a guard: SIGBUS
os.truncate({str(path)!r}, mapped.size)
os.utime({str(path)!r}, ns=(mapped._stat.st_atime_ns, mapped._stat.st_mtime_ns))
try:
    mapped.check()
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be read while it was in use" in done.stdout
