"""Endpoints that clients know and this server has nothing behind: 501 and one sentence instead of 404."""

from __future__ import annotations

from fastapi import APIRouter

from stratakv.serve.api.errors import ApiError

_EMBEDDINGS = "this server has no embeddings: it runs one model that generates text"
_RERANKING = "this server does not rank documents: it runs one model that generates text"
_INFILL = "this server does not fill in the middle: give the text before the gap to /completion"
_MODELS = "this server has the one model that it was started with: none can be fetched, made or removed"
_ADAPTERS = "this server has no LoRA adapters"
_MEDIA = "this server takes and gives text only"
_PATHS = {
    _EMBEDDINGS: ("/v1/embeddings", "/embeddings", "/embedding", "/api/embed", "/api/embeddings"),
    _RERANKING: ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/v2/rerank", "/score", "/v1/score"),
    _INFILL: ("/infill",),
    _MODELS: ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/models/load", "/models/unload"),
    _ADAPTERS: ("/lora-adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    _MEDIA: (
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/moderations",
    ),
}


def router() -> APIRouter:
    """All of them, whatever the method."""
    routes = APIRouter(include_in_schema=False)

    def add(path: str, sentence: str) -> None:
        async def refuse() -> None:
            raise ApiError(sentence, status=501)

        routes.add_api_route(path, refuse, methods=["GET", "POST", "DELETE"])

    for sentence, paths in _PATHS.items():
        for path in paths:
            add(path, sentence)
    return routes
