"""Browsers and containers: whose pages may ask, by which names, and what stays forbidden."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stratakv.errors import UserError
from stratakv.serve.api.guard import guard
from stratakv.serve.api.origins import checked_hosts, checked_origins
from stratakv.serve.api.settings import ServerSettings

LOCAL = ["http://localhost:3000", "https://localhost", "http://127.0.0.1:9999", "http://[::1]:5173", "http://app.localhost",
         "app://obsidian.md", "tauri://localhost", "vscode-webview://abc", "file://"]  # fmt: skip
FOREIGN = ["http://evil.example", "null", "https://localhost.evil.example", "http://127.0.0.1.evil.example",
           "http://evil.example:8080", "http://192.168.1.5", "http://evil.local", "moz-extension://x"]  # fmt: skip


def ask(method: str, headers: dict[str, str], host: str = "127.0.0.1:8080", **settings: Any) -> httpx.Response:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Any:
        return []

    guard(app, ServerSettings("m", "m", 128, 1, 1, **settings))

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as http:
            return await http.request(method, "/v1/models", headers=headers)

    return asyncio.run(go())


def get(origin: str | None = None, host: str = "127.0.0.1:8080", **settings: Any) -> httpx.Response:
    return ask("GET", {} if origin is None else {"origin": origin}, host, **settings)


def preflight(origin: str, **settings: Any) -> httpx.Response:
    wishes = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return ask("OPTIONS", {"origin": origin, **wishes}, **settings)


@pytest.mark.parametrize("origin", LOCAL)
def test_pages_of_this_machine_may_ask(origin):
    answer = get(origin)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
    assert "Warning" in answer.headers["access-control-expose-headers"]
    assert preflight(origin).status_code == 200


@pytest.mark.parametrize("origin", FOREIGN)
def test_pages_from_elsewhere_may_not(origin):
    for answer in (get(origin), preflight(origin), get(origin, loopback=False), get(origin, api_keys=("k",))):
        assert answer.status_code == 403 and "--cors-origins" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_the_server_itself_may_ask():
    assert get("http://127.0.0.1:8080").status_code == 200
    assert get("http://box.example", host="box.example", loopback=False).status_code == 200


def test_origins_that_are_allowed():
    chosen = {"cors_origins": checked_origins("https://chat.example, moz-extension://x/")}
    for origin in ("https://chat.example", "moz-extension://x", LOCAL[0]):
        assert get(origin, **chosen).headers["access-control-allow-origin"] == origin
    for origin in ("http://chat.example", "https://chat.example:444", "https://chatxexample", "https://a.chat.example"):
        assert get(origin, **chosen).status_code == 403
    for origin in FOREIGN:
        assert get(origin, cors_origins=("*",)).headers["access-control-allow-origin"] == origin


def test_a_preflight_needs_no_key_and_names_methods_and_headers():
    answer = preflight("http://localhost:3000", api_keys=("k",))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    refused = get("http://localhost:3000", api_keys=("k",))  # what the page then lacks is told so that it can read it
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize(
    "host",
    ["localhost:1", "127.0.0.1", "[::1]:80", "host.docker.internal:8080", "box.local", "a.localhost", "LOCALHOST"],
)
def test_names_of_this_machine(host):
    assert get(host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["rebound.example:8080", "localhost.rebound.example", "internal", "local", "x.local.rebound.example", "", "[::1"],
)
def test_a_rebound_name_is_not_this_machine(host):
    """A page whose own name was rebound to 127.0.0.1 has the server's origin: its host's name gives it away."""
    for origin in (None, f"http://{host}"):
        headers = {"host": host} if origin is None else {"host": host, "origin": origin}
        answer = ask("GET", headers)
        assert answer.status_code == 403, answer.text
        assert ask("GET", headers, cors_origins=("*",)).status_code == 403


def test_hosts_that_are_allowed():
    chosen = {"allowed_hosts": checked_hosts("box.example, *.lan.example")}
    for host in ("box.example", "box.example:8080", "a.lan.example", "localhost"):
        assert get(host=host, **chosen).status_code == 200
        assert get(host=host, loopback=False, **chosen).status_code == 200
    for host in ("lan.example", "evil.example", "xlan.example"):
        assert get(host=host, **chosen).status_code == 403
        assert get(host=host, loopback=False, **chosen).status_code == 403
    assert get(host="any.example", allowed_hosts=("*",)).status_code == 200
    assert get(host="any.example", loopback=False).status_code == 200
    assert ask("GET", {"authorization": "Bearer k"}, "any.example", api_keys=("k",)).status_code == 200


def test_options_are_checked():
    for text in ("chat.example", "https://a b", "http//x"):
        with pytest.raises(UserError, match="--cors-origins"):
            checked_origins(text)
    for text in ("a b", "http://x", "x:80"):
        with pytest.raises(UserError, match="--allowed-hosts"):
            checked_hosts(text)
