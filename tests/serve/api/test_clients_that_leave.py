"""Clients that leave, are slow, or are refused: pages are free at once, and nobody else notices."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest
from servers import running

from stratakv.serve.request import Limits

LONG = {"prompt": "The night was", "n_predict": 900, "temperature": 0, "ignore_eos": True}
ENDPOINTS = [
    ("/completion", LONG),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 900, "ignore_eos": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 900, "ignore_eos": True}),
    ("/api/generate", {"model": "strata-8m", "prompt": "x", "raw": True}),
]


def send(port: int, path: str, body: dict[str, object]) -> socket.socket:
    data = json.dumps(body).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    return client


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "body"), ENDPOINTS, ids=[path for path, _ in ENDPOINTS])
def test_a_client_that_leaves_frees_its_pages(server, path, body, stream):
    server.wait_idle()
    cancelled = server.engine.snapshot().counters.cancelled
    client = send(server.port, path, {**body, "stream": stream})
    if stream:
        assert client.recv(100)
    end = time.monotonic() + 10
    while not server.engine.snapshot().running:
        assert time.monotonic() < end
        time.sleep(0.005)
    client.close()
    server.wait_idle(2.0)
    snapshot = server.engine.snapshot()
    assert snapshot.pages_used == 0 and snapshot.counters.cancelled > cancelled


def test_clients_that_leave_while_they_wait():
    limits = Limits(slots=1, context=1024, cache_bytes=8 * 2**20)
    with running(limits=limits) as server:
        clients = [send(server.port, "/completion", {**LONG, "stream": True}) for _ in range(5)]
        end = time.monotonic() + 10
        while server.engine.snapshot().queued < 4:
            assert time.monotonic() < end
            time.sleep(0.01)
        for client in reversed(clients):  # those that wait first
            client.close()
        server.wait_idle(2.0)
        assert server.engine.snapshot().pages_used == 0


def test_a_full_queue_is_503_with_a_time():
    with running(limits=Limits(slots=1, context=1024, cache_bytes=8 * 2**20, queue=1)) as server:
        clients = [send(server.port, "/completion", {**LONG, "stream": True}) for _ in range(2)]
        end = time.monotonic() + 10
        while (snapshot := server.engine.snapshot()).running + snapshot.queued < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "n": 2})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "server_error"
        assert httpx.get(f"{server.url}/health").status_code == 200
        for client in clients:
            client.close()
        server.wait_idle(2.0)


def test_a_client_that_reads_nothing_is_dropped():
    """The buffers between fill up; then the piece that nobody takes ends the request."""
    limits = Limits(slots=2, context=1024, cache_bytes=8 * 2**20)
    with running(limits=limits, send_seconds=0.2, send_buffer=4096) as server:
        client = send(server.port, "/completion", {**LONG, "stream": True, "n_probs": 20})  # large events
        while not server.engine.snapshot().counters.requests:
            time.sleep(0.01)
        server.wait_idle(30)
        counters = server.engine.snapshot().counters
        client.close()
    assert (counters.cancelled, counters.finished) == (1, 0) and counters.generated_tokens < 900


def test_a_failed_loop_is_503():
    with running() as server:

        def break_loop(work):
            raise RuntimeError("broken for the test")

        server.engine.cache.runner.run = break_loop
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", lambda args: None)
            answer = httpx.post(f"{server.url}/completion", json=LONG, timeout=20)
            assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
            end = time.monotonic() + 5
            while (health := httpx.get(f"{server.url}/health")).status_code == 200:
                assert time.monotonic() < end
                time.sleep(0.02)
        assert health.status_code == 503 and "broken for the test" in health.json()["error"]["message"]
        assert httpx.post(f"{server.url}/completion", json=LONG).status_code == 503
        assert httpx.get(f"{server.url}/stratakv/status").json()["healthy"] is False
