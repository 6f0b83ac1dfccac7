"""The web page's files, and the numbers that it draws."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, JSONResponse

from stratakv.kvtypes import KVType, kv_type
from stratakv.kvtypes.floats import FloatType
from stratakv.kvtypes.trellis import TrellisType
from stratakv.profile.storage import finer_of
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.settings import Context

SCHEMA = "stratakv/serve/1"
_FILES = Path(__file__).parent.parent / "web"
_TYPES = {
    "style.css": "text/css",
    "api.js": "text/javascript",
    "chat.js": "text/javascript",
    "cache.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def index() -> FileResponse:
        return FileResponse(_FILES / "index.html", media_type="text/html", headers=_HEADERS)

    @routes.get("/web/{name}")
    async def file(name: str) -> FileResponse:
        if name not in _TYPES:
            raise ApiError(f"no file {name[:100]!r}", status=404)
        return FileResponse(_FILES / name, media_type=_TYPES[name], headers=_HEADERS)

    @routes.get("/stratakv/status")
    async def status() -> JSONResponse:
        return JSONResponse(status_object(context))

    return routes


def status_object(context: Context) -> dict[str, Any]:
    """Everything the page shows: the engine's snapshot, the model's name, the context, and each layer's families and bits a
    value, those of its spans' pages among them (null without spans)."""
    head = {"schema": SCHEMA, "model": context.settings.alias, "context": context.settings.context}
    status = {**head, **asdict(context.engine.snapshot())}
    dims = {layer.layer: layer.head_dim for layer in context.engine.loaded.geometry.layers}
    for layer in status["layers"]:
        for side, head_dim in zip("kv", dims[layer["layer"]], strict=True):
            type_, finer = kv_type(layer[side]), kv_type(layer["fine"]) if layer["fine"] else None
            fine_bits = None if finer is None else finer_of(type_, finer, head_dim).bits_per_value(head_dim)
            layer |= {
                f"{side}_family": family(type_),
                f"{side}_bits": type_.bits_per_value(head_dim),
                f"{side}_fine_bits": fine_bits,
            }
    return status


def family(type_: KVType) -> str:
    """What the page's colours tell apart: float, turbo, trellis, or block for all others."""
    if isinstance(type_, TrellisType):
        return "trellis"
    return "float" if isinstance(type_, FloatType) else "turbo" if type_.turbo else "block"
