"""Servers as processes of their own: ours, and llama-cpp-python's, on a port of 127.0.0.1."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stratakv.bench.worker import stop
from stratakv.errors import UserError
from stratakv.profile.parse import is_spanned

_SECONDS_TO_START = 300.0


@contextmanager
def our_server(model: str, profile: str, threads: int, options: Sequence[str]) -> Iterator[str]:
    """`stratakv serve` with a profile; its URL."""
    command = [
        sys.executable,
        "-m",
        "stratakv",
        "serve",
        "-m",
        model,
        "--profile",
        profile if is_spanned(profile) else f"{profile}; recent: 0 pages",  # to the letter, as it is reported
        "-t",
        str(threads),
        *options,
    ]
    with _serving(command, ["--port"], "/health") as url:
        yield url


@contextmanager
def llama_server(python: str, gguf: Path, context: int, threads: int) -> Iterator[str]:
    """llama-cpp-python's server with an f16 cache; its URL. It answers one request at a time."""
    command = [python, "-P", "-m", "llama_cpp.server", "--model", str(gguf), "--n_ctx", str(context)]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "False"]
    with _serving(command, ["--host", "127.0.0.1", "--port"], "/v1/models") as url:
        yield url


@contextmanager
def _serving(command: Sequence[str], port_option: Sequence[str], path: str) -> Iterator[str]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    foreign = ("TURBO_LAYER_ADAPTIVE", "LLAMA_API_KEY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        process = subprocess.Popen(
            [*command, *port_option, str(port)], stdout=words, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait(process, url + path, words)
            yield url
        finally:
            stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, words: IO[str]) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < end:
        if process.poll() is not None:
            words.seek(0)
            last = " ".join(words.read().split("\n")[-4:]).strip()
            raise UserError(f"the server ended with code {process.returncode}: {last}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise UserError(f"the server did not answer at {url} within {_SECONDS_TO_START:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
