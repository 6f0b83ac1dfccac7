"""A process of its own for a measurement: JSON lines in and out, and the peak of its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from stratakv.errors import UserError

_ERROR_LINES = 3


class Worker:
    """A child process that answers each JSON line with one JSON line. Use it in `with`; it ends at the end of the block.

    command: program and arguments. name: how errors call it. without: variables that it doesn't inherit.
    Raises UserError, with the process's last words, when the process can't be started or ends before it has answered.
    """

    def __init__(self, command: Sequence[str], name: str, without: Sequence[str] = ()) -> None:
        self.name = name
        self._words = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed in __exit__)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                text=True,
                env={key: value for key, value in os.environ.items() if key not in without},
            )
        except OSError as error:
            self._words.close()
            raise UserError(f"{name}: cannot run {command[0]}: {error.strerror or error}") from error

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for the answer. An answer with the field "error" raises UserError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{self.name}: the process ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']}")
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, for instance SIGSTOP to one that has to wait without a thread at work."""
        self._process.send_signal(number)

    def reset_peak(self) -> None:
        """Let the peak of the memory begin again at what is resident now (Linux; elsewhere it is not known)."""
        path = Path(f"/proc/{self._process.pid}/clear_refs")
        if path.exists():
            path.write_text("5")

    def peak_bytes(self) -> int | None:
        """The most memory that was resident since reset_peak, shared libraries included; None outside Linux."""
        path = Path(f"/proc/{self._process.pid}/status")
        if not path.exists():
            return None
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._words.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._words.seek(0)
        lines = [line for line in self._words.read().splitlines() if line.strip()]
        return " / ".join(lines[-_ERROR_LINES:]) or f"exit code {self._process.returncode}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that may have ended already: it is asked to, and killed after 10 seconds."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answer_requests(session: object) -> None:
    """The other side, for a program that a Worker runs: until the input ends, {"do": NAME, ...} calls that method of `session`
    with the other fields, and what it returns, or a UserError's text, is the answer."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(session, request.pop("do"))(**request)
        except UserError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
