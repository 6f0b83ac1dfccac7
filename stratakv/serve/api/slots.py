"""llama-server's /slots: what runs where, and saving, restoring and erasing a slot's cache."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.schemas_llama import SlotBody
from stratakv.serve.api.settings import Context
from stratakv.serve.request import SlotSnapshot

# Never a path: no separator, no leading dot, no drive, nothing that a shell or a log would read in another way
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(tags=["llama-server"])
    settings = context.settings

    @routes.get("/slots")
    async def slots() -> JSONResponse:
        return JSONResponse([slot_object(slot, settings.context) for slot in context.engine.snapshot().slots])

    @routes.post("/slots/{slot}")
    async def act(slot: int, action: Literal["save", "restore", "erase"], body: SlotBody | None = None) -> JSONResponse:
        if not 0 <= slot < settings.slots:
            raise ApiError(f"slot {slot}: this server has the slots 0 to {settings.slots - 1}", param="slot")
        if action == "erase":
            erased = await context.engine.erase_slot(slot)
            return JSONResponse({"id_slot": slot, "n_erased": erased})
        path = slot_file(settings.slot_save_path, body.filename if body else None)
        started = time.perf_counter()
        if action == "save":
            saved = await context.engine.save_slot(slot, path)
            numbers = {"n_saved": saved.tokens, "n_written": saved.nbytes}
        else:
            if not path.is_file():
                raise ApiError(f"no saved slot {path.name!r}", status=404, param="filename")
            restored = await context.engine.restore_slot(slot, path)
            numbers = {"n_restored": restored.tokens, "n_read": restored.nbytes}
        spent = {f"{action}_ms": 1e3 * (time.perf_counter() - started)}
        return JSONResponse({"id_slot": slot, "filename": path.name, **numbers, "timings": spent})

    return routes


def slot_file(directory: Path | None, name: str | None) -> Path:
    """The file that a request's name means: always directly in --slot-save-path."""
    if directory is None:
        raise ApiError("slots can't be saved: start the server with --slot-save-path DIRECTORY", status=501)
    if not name:
        raise ApiError('filename is missing: the body is {"filename": NAME}', param="filename")
    if not _NAME.fullmatch(name):
        raise ApiError(
            f"filename {name[:100]!r}: up to 128 letters, digits, '.', '_' and '-', a letter or digit first",
            param="filename",
        )
    return directory / name


def slot_object(slot: SlotSnapshot, context: int) -> dict[str, Any]:
    """A slot as llama-server lists it, with its pages."""
    return {
        "id": slot.id,
        "id_task": -1 if slot.request is None else slot.request,
        "n_ctx": context,
        "speculative": False,
        "is_processing": slot.state != "idle",
        "state": slot.state,
        "n_prompt_tokens": slot.prompt_tokens,
        "n_prompt_tokens_processed": slot.prompt_done,
        "n_prompt_tokens_cache": slot.cached_tokens,
        "n_tokens": slot.tokens,
        "n_pages": slot.pages,
        "next_token": {"n_decoded": slot.decoded},
    }
