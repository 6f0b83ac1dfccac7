"""The application: every family of endpoints over one engine, behind the guard."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from stratakv import __version__
from stratakv.serve.api import (
    absent,
    errors,
    llama_server,
    messages,
    metrics,
    ollama,
    openai,
    openai_chat,
    page,
    responses,
    slots,
)
from stratakv.serve.api.guard import guard
from stratakv.serve.api.prompts import Prompter
from stratakv.serve.api.settings import Context, ServerSettings

if TYPE_CHECKING:
    from stratakv.serve.engine import Engine

_DESCRIPTION = "OpenAI's, Anthropic's, llama-server's and Ollama's endpoints over a packed per-layer KV cache."


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """The ASGI application. It starts the engine with itself and stops it at its end, within settings.grace_seconds."""
    config = engine.loaded.model.config.get_text_config(decoder=True)
    prompter = Prompter(engine.loaded.tokenizer, config.vocab_size, settings.context)
    context = Context(engine, prompter, settings, time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await engine.stop(settings.grace_seconds)
            prompter.close()

    app = FastAPI(
        title="stratakv serve",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    for family in (openai, openai_chat, responses, messages, llama_server, slots, metrics, ollama, page):
        app.include_router(family.router(context))
    app.include_router(absent.router())
    guard(app, settings)
    return app
