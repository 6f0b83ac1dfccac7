"""A real server in a thread: the real engine on the embedded model, uvicorn, a port of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import uvicorn

from stratakv import load_model, resolve
from stratakv.engine.load import LoadedModel
from stratakv.serve.api.app import create_app
from stratakv.serve.api.settings import ServerSettings
from stratakv.serve.engine import Engine
from stratakv.serve.request import Limits

ALIAS = "strata-8m"


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    port: int
    engine: Engine

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Until nothing runs or waits; AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while (snapshot := self.engine.snapshot()).running or snapshot.queued:
            assert time.monotonic() < end, snapshot
            time.sleep(0.01)


@cache
def embedded() -> LoadedModel:
    """The embedded model, loaded once a process."""
    return load_model("embedded")


@contextmanager
def running(
    *,
    profile: str = "turbo4",
    limits: Limits | None = None,
    send_buffer: int | None = None,
    model: LoadedModel | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Serve a model, the embedded one if none is given; send_buffer: bytes of each connection's in the kernel; settings: of
    ServerSettings."""
    loaded = model or embedded()
    limits = limits or Limits(slots=4, context=1024, cache_bytes=32 * 2**20)
    engine = Engine(loaded, resolve(profile, loaded.geometry), limits)
    given = {
        "alias": ALIAS,
        "model_path": "embedded",
        "context": limits.context,
        "slots": limits.slots,
        "parameters": 7_869_120,
        **settings,
    }
    app = create_app(engine, ServerSettings(**{"grace_seconds": 0.0, **given}))
    listener = socket.socket()
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # connections inherit it
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{port}", port, engine)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
