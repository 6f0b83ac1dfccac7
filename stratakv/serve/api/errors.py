"""Every error is JSON in the form that the family's clients read; what the user can mend is 400 and names the parameter."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stratakv.errors import UserError
from stratakv.serve.request import GrammarError, NotRunning, PromptTooLong, QueueFull

INVALID = "invalid_request_error"
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 501: "not_supported_error"}

_ANTHROPIC = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
_ANTHROPIC |= {503: "overloaded_error"}


class ApiError(Exception):
    """An answer that is an error. param: the request's field that it is about."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers, self.fields = headers or {}, fields

    def body(self, path: str) -> dict[str, Any]:
        """OpenAI's and llama-server's form; Ollama's below /api/, whose clients expect a text; Anthropic's below /v1/messages."""
        if path.startswith("/api/"):
            return {"error": self.message}
        if path.startswith("/v1/messages"):
            error_type = _ANTHROPIC.get(self.status, "api_error" if self.status >= 500 else INVALID)
            return {"type": "error", "error": {"type": error_type, "message": self.message}}
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else INVALID)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code or self.status}
        return {"error": {**error, **self.fields}}

    def response(self, path: str) -> JSONResponse:
        """The same as an HTTP answer."""
        return JSONResponse(self.body(path), self.status, self.headers)


def as_api_error(error: Exception) -> ApiError:
    """What the engine raises, in the words and numbers of HTTP."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        after = str(max(1, math.ceil(error.retry_after)))
        return ApiError(str(error), status=503, code="queue_full", headers={"Retry-After": after})
    if isinstance(error, NotRunning):
        return ApiError(str(error) or "the model is not running", status=503, code="not_running")
    if isinstance(error, PromptTooLong):
        extra: dict[str, Any] = {"n_prompt_tokens": error.tokens, "n_ctx": error.allowed}
        return ApiError(str(error), param="prompt", code="context_length_exceeded", **extra)
    if isinstance(error, GrammarError):
        return ApiError(str(error), param=error.parameter)
    if isinstance(error, UserError):
        return ApiError(str(error))
    traceback.print_exception(error, file=sys.stderr)
    return ApiError("the server failed at this request; its log says why", status=500, code="internal_error")


def install(app: FastAPI) -> None:
    """Let the application answer all errors in these forms."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response(request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _from_validation(error).response(request.url.path)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path
        words = {404: f"no such endpoint: {request.method} {path}", 405: f"{path} does not take {request.method}"}
        message = words.get(error.status_code, str(error.detail))
        return ApiError(message, status=error.status_code, headers=dict(error.headers or {})).response(path)

    for kind in (ApiError, UserError, QueueFull, NotRunning, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _most_telling(errors: Sequence[Any]) -> Any:
    """Where a field takes several forms, pydantic says for each why it is not that one: what is wrong with the form that was
    given tells more than that it is no other form."""
    first = errors[0]
    same = [error for error in errors if error["loc"][:2] == first["loc"][:2]]
    return next((error for error in same if not error["type"].endswith("_type")), first)


def _place(error: Any, body: Any) -> list[str]:
    """The way to a field in the body as it was sent, without the names that pydantic gives to the forms of a field."""
    first, *others = error["loc"][1:] or [None]
    place, here = [] if first is None else [str(first)], body.get(first) if isinstance(body, dict) else None
    for part in others:
        if (isinstance(here, list) and isinstance(part, int)) or (isinstance(here, dict) and part in here):
            here = here[part]
        elif not (error["type"] in ("missing", "extra_forbidden") and part == error["loc"][-1]):
            continue
        place.append(str(part))
    return place


def _from_validation(error: RequestValidationError) -> ApiError:
    first = _most_telling(error.errors())
    place = _place(first, error.body)
    param = place[0] if place else None
    if first["type"] == "extra_forbidden":
        name = ".".join(place)
        return ApiError(
            f"{name!r} is not supported by this server: leave it out", param=param, code="unsupported_parameter"
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(f"{'.'.join(place) or 'the request'}: {message}", param=param)
