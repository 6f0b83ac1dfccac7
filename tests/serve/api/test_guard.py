"""What never reaches an endpoint: strangers, too much, and what is no JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.guard import check_json, guard
from stratakv.serve.api.settings import ServerSettings


def client(host: str = "127.0.0.1:8080", **settings: Any) -> httpx.AsyncClient:
    """A client of an application that gives back what it got, behind the guard."""
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> Any:
        return {"got": await request.json() if await request.body() else None}

    @app.get("/{path:path}")
    async def read(path: str) -> Any:
        return {"path": path}

    guard(app, ServerSettings("m", "m", 128, 1, 1, **settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}")


def post(content: Any, headers: dict[str, Any] | None = None, **settings: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with client(**settings) as http:
            return await http.post("/echo", content=content, headers=headers)

    return asyncio.run(go())


def get(path: str, headers: dict[str, Any] | None = None, **settings: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with client(**settings) as http:
            return await http.get(path, headers=headers)

    return asyncio.run(go())


def test_any_content_type_is_json():
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        assert post(b'{"a": 1}', {"content-type": kind}).json() == {"got": {"a": 1}}
    assert post(b"").json() == {"got": None}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": [1e999]}', "1e999 is larger than any float"),
        (b'{"a": "\xc3"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b"{", "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[" * 65 + b"]" * 65, "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested deeper"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_refused_bodies(body, says):
    answer = post(body)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_allowed_bodies():
    check_json(b'{"a": "\\ud83d\\ude00", "b": [1e300, 1.5, null]}', 3)
    check_json(b"[" * 64 + b"]" * 64, 64)
    with pytest.raises(ApiError):
        check_json(b"[" * 65 + b"]" * 65, 64)


def test_size():
    assert post(b'"' + b"x" * 98 + b'"', max_body_bytes=100).status_code == 200
    assert post(b'"' + b"x" * 99 + b'"', max_body_bytes=100).status_code == 413

    async def endless():
        while True:  # no content-length: counted while it comes
            yield b"[" * 50

    assert post(endless(), max_body_bytes=1000).status_code == 413


def test_a_body_that_does_not_come():
    async def slow():
        yield b"{"
        await asyncio.sleep(30)

    assert post(slow(), body_seconds=0.05).status_code == 408


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_keys(name):
    def ask(key: str) -> int:
        value = f"Bearer {key}" if name == "authorization" else key
        return get("/v1/models", {name: value.encode()}, api_keys=("right", "second")).status_code

    assert [ask(key) for key in ("right", "second", "wrong", "", "righ", "ri\u00e9ght")] == [
        200,
        200,
        401,
        401,
        401,
        401,
    ]
    assert get("/v1/models", api_keys=("k",)).headers["www-authenticate"] == "Bearer"


def test_without_a_key_only_health_and_the_page():
    open_ = [path for path in ("/", "/health", "/web/style.css", "/metrics", "/slots", "/openapi.json", "/stratakv/status")
             if get(path, api_keys=("k",)).status_code == 200]  # fmt: skip
    assert open_ == ["/", "/health", "/web/style.css"]


def test_head_is_get_without_its_body(server):
    for path in ("/", "/health", "/api/version"):
        answer = httpx.head(f"{server.url}{path}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == httpx.get(f"{server.url}{path}").headers["content-length"]


def test_ollamas_errors_are_texts():
    async def go() -> Any:
        async with client() as http:
            return (await http.post("/api/chat", content=b"{")).json()

    assert isinstance(asyncio.run(go())["error"], str)
    assert json.loads(post(b"{").text)["error"]["code"] == 400
