"""What the HTTP side is told at its start, and the one object that every family of endpoints gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stratakv.serve.api.prompts import Prompter
    from stratakv.serve.engine import Engine


@dataclass(frozen=True)
class ServerSettings:
    """alias: the model's name in answers. model_path: as it was given. context: tokens of prompt and answer together.
    parameters: number of the model's weights.

    n_predict: new tokens where a request names no number, -1: as many as the context holds. api_keys: empty: none asked for.
    slot_save_path: where slots are saved, None: they can't be. loopback: only this machine can reach the server.
    cors_origins: pages of these may ask beside local ones, "*": all. allowed_hosts: names that the server answers to beside local
    ones; without any, a server that others can reach answers to all.
    max_body_bytes, max_depth: of a JSON body. max_choices: answers of one request. body_seconds: for a body to arrive in
    whole. send_seconds: for a client to take a piece of an answer. grace_seconds: for running requests at the end.
    """

    alias: str
    model_path: str
    context: int
    slots: int
    parameters: int
    n_predict: int = -1
    api_keys: tuple[str, ...] = ()
    slot_save_path: Path | None = None
    metrics: bool = False
    loopback: bool = True
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_depth: int = 64
    max_choices: int = 64
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    grace_seconds: float = 30.0


@dataclass(frozen=True)
class Context:
    """The engine, the text side, the settings."""

    engine: Engine
    prompter: Prompter
    settings: ServerSettings
    started: float = field(default=0.0)
