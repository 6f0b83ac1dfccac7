"""What every request passes before it reaches an endpoint: its key, how much is sent, and whether it is JSON at all."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.origins import METHODS, SHOWN_HEADERS, Strangers, origin_pattern
from stratakv.serve.api.settings import ServerSettings

# Without a key: is the server alive, and the page, which asks for the key itself
_OPEN = ("/", "/health", "/v1/health", "/web/")
_LONG_BODY = 64 * 2**10


def guard(app: FastAPI, settings: ServerSettings) -> None:
    """Let requests pass all of it: who asks, what a browser wants to know beforehand, key, size and form."""
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=origin_pattern(settings),
        allow_methods=METHODS,
        allow_headers=["*"],
        expose_headers=SHOWN_HEADERS,
        allow_private_network=True,
        max_age=600,
    )
    app.add_middleware(Strangers, settings=settings)


class Guard:
    """ASGI middleware. It reads a request's whole body, within limits of size, time and depth, before the endpoint runs.

    Any content type is taken as JSON, since `curl -d` and Ollama's examples name another one. HEAD, by which Ollama's command
    and load balancers look whether somebody is there, is GET without its body, which the HTTP server leaves out.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_key(scope["path"], headers)
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
            elif scope["method"] not in ("GET", "OPTIONS"):
                body = await self._read(headers, receive)
                await self._check_json(body)
                MutableHeaders(scope=scope)["content-type"] = "application/json"
                receive = _replay(body, receive)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._keys or path in _OPEN or path.startswith("/web/"):
            return
        given = headers.get("authorization", "").removeprefix("Bearer ").strip() or headers.get("x-api-key", "")
        digest = _digest(given)
        # All keys are compared, each in constant time
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            raise ApiError(
                "an API key is needed: send 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        limit = self.settings.max_body_bytes
        too_large = ApiError(f"the body is larger than {limit:,} bytes", status=413, headers={"Connection": "close"})
        if headers.get("content-length", "").isdigit() and int(headers["content-length"]) > limit:
            raise too_large
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError("the client left before its body was whole", status=400)
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(pieces)
        except TimeoutError:
            seconds = self.settings.body_seconds
            raise ApiError(f"the body did not arrive within {seconds:g} seconds", status=408) from None

    async def _check_json(self, body: bytes) -> None:
        if not body:
            return
        if len(body) > _LONG_BODY:
            await run_in_threadpool(check_json, body, self.settings.max_depth)
        else:
            check_json(body, self.settings.max_depth)


def check_json(body: bytes, max_depth: int) -> None:
    """Refuse what Python's parser lets through or fails at: bytes that are not UTF-8, NaN, lone surrogates, deep nesting."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        if b"\\u" in body:  # half of a surrogate pair is no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except UnicodeEncodeError:
        raise ApiError("the body holds half of a surrogate pair (\\ud800 to \\udfff): that is no text") from None
    except RecursionError:
        raise ApiError(f"the body is nested deeper than {max_depth} levels") from None
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {str(error)[:200]}") from None
    level = _containers([value])
    for _ in range(max_depth):
        level = _containers(
            child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent)
        )
    if level:
        raise ApiError(f"the body is nested deeper than {max_depth} levels")


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, (dict, list))]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is larger than any float")
    return value


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, for the endpoint; afterwards what the connection says (that the client left)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
