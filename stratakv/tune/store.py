"""What was measured, kept as it is measured: a run that was killed goes on where it stopped, and nothing is measured twice.

One file of JSON lines in the run directory, named by what determines its numbers (model, text, cut, versions). Each line is
written whole and flushed; a last line that a kill cut short is dropped when the file is opened again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratakv.errors import UserError

FORMAT = 1


class Store:
    """Lines by (kind, name): a dictionary that is also a file.

    directory: made when missing. determined_by: JSON values that the numbers depend on; their hash names the file, and they
    are its first line. Raises UserError where it can't be written.
    """

    def __init__(self, directory: str | Path, determined_by: Mapping[str, Any]) -> None:
        head = {"stratakv_measurements": FORMAT, **determined_by}
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        self.path = Path(directory) / f"{digest[:16]}.jsonl"
        self._lines: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            self._read(head)
        except OSError as error:
            raise UserError(f"cannot keep measurements in {self.path}: {error.strerror or error}") from error

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """What was kept, or None."""
        return self._lines.get((kind, name))

    def put(self, kind: str, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a value (JSON) and give it back."""
        line = {"kind": kind, "name": name, **value}
        self._write(line)
        self._lines[kind, name] = line
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, head: Mapping[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._write(head)
        for number, line in enumerate(lines[1:], 2):
            try:
                data = json.loads(line)
                self._lines[data["kind"], data["name"]] = data
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"line {number} of {self.path} is no measurement: remove the file, and what it holds is measured again"
                ) from error

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot keep measurements in {self.path}: {error.strerror or error}") from error
