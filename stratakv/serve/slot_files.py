"""Slots on disk: the whole pages of a prompt as the types' canonical bytes, refused when anything about them differs.

    "stratakv/slot/1\n" | length of the header, 8 bytes, little endian | header, JSON | token ids, int32 | for each group, each
    of its layers: uint8 [pages, kv_heads, PAGE_TOKENS, k_bytes + v_bytes] | sha256 over all before

The header names the model's fingerprint, each layer's types with version and rotation seed, and which pages each group holds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.serve.runner import BatchedRunner
from stratakv.serve.sequence import page_keys

if TYPE_CHECKING:
    from stratakv.serve.engine import Engine

MAGIC = b"stratakv/slot/1\n"
_CHECKSUM = 32


@dataclass(frozen=True)
class Saved:
    """tokens: of the slot's prompt in the file; nbytes: of the file."""

    tokens: int
    nbytes: int


async def save(engine: Engine, slot: int, path: Path) -> Saved:
    """Write a slot's pages; they are held meanwhile."""
    runner = _runner(engine)

    def hold() -> tuple[tuple[int, ...], list[tuple[int, list[int]]]]:
        tokens, keys = _slot_contents(engine, slot)
        pages = engine.scheduler.cached_prefix(keys, len(tokens) + 1)
        if not pages:
            raise UserError(
                f"slot {slot} holds no whole page ({PAGE_TOKENS} tokens) of a prompt: there is nothing to save"
            )
        held = []
        for group, pool in zip(engine.groups, engine.pools, strict=True):
            first = group.first_visible(pages * PAGE_TOKENS) // PAGE_TOKENS
            ids = [page for key in keys[first:pages] if (page := pool.lookup(key)) is not None]
            for page in ids:
                pool.share(page)
            held.append((first, ids))
        return tokens[: pages * PAGE_TOKENS], held

    tokens, held = await engine.between_steps(hold)
    try:
        return await asyncio.to_thread(_write, engine, runner, path, tokens, held)
    finally:

        def let_go() -> None:
            for pool, (_, ids) in zip(engine.pools, held, strict=True):
                for page in reversed(ids):
                    pool.release(page)

        await engine.between_steps(let_go)


async def restore(engine: Engine, slot: int, path: Path) -> Saved:
    """Read a file's pages into the cache, where prompts that begin with its tokens find them."""
    runner = _runner(engine)
    tokens, firsts, states, nbytes = await asyncio.to_thread(_read, engine, path)
    keys = page_keys(tokens, engine.salt)

    def allocate() -> list[list[int]]:
        taken: list[list[int]] = []
        for first, pool in zip(firsts, engine.pools, strict=True):
            wanted = len(keys) - first
            if pool.available < wanted:
                _release(engine, taken)
                raise UserError(f"{path.name} needs {wanted} pages, {pool.available} are not in use: try again later")
            taken.append([page for _ in range(wanted) if (page := pool.allocate()) is not None])
        return taken

    taken = await engine.between_steps(allocate)
    try:
        await asyncio.to_thread(_fill, engine, runner, taken, states)
        done = True
    except BaseException:
        done = False
        raise
    finally:

        def publish() -> None:
            if done:
                for first, pool, ids in zip(firsts, engine.pools, taken, strict=True):
                    for page, key in zip(ids, keys[first:], strict=True):
                        pool.publish(page, key)
                engine.slot_keys[slot] = (tokens, keys)
            _release(engine, taken)

        await engine.between_steps(publish)
    return Saved(len(tokens), nbytes)


def _runner(engine: Engine) -> BatchedRunner:
    if not isinstance(engine.runner, BatchedRunner) or not engine.scheduler.keep_prefixes:
        raise UserError(f"slots can't be saved or restored here: {engine.runner.batching}, no shared pages")
    return engine.runner


def _slot_contents(engine: Engine, slot: int) -> tuple[tuple[int, ...], list[bytes]]:
    for sequence in engine.scheduler.running:
        if sequence.slot == slot:
            return sequence.request.prompt, sequence.keys[: sequence.published]
    return engine.slot_keys[slot]


def _release(engine: Engine, taken: list[list[int]]) -> None:
    for pool, ids in zip(engine.pools, taken, strict=False):
        for page in reversed(ids):
            pool.release(page)


def _expected(engine: Engine) -> dict[str, Any]:
    """What a file must say to fit."""
    layers = []
    for group in engine.groups:
        for ordinal, layer in group.layers:
            sides = [(name, kv_type(name)) for name in engine.profile.pairs[ordinal]]
            types = [{"type": n, "version": t.version, "rotation_seed": t.rotation_seed} for n, t in sides]
            layers.append(
                {
                    "layer": layer.layer,
                    "k": types[0],
                    "v": types[1],
                    "head_dim": list(layer.head_dim),
                    "kv_heads": layer.kv_heads,
                    "window": layer.window,
                }
            )
    return {"fingerprint": engine.loaded.fingerprint, "page_tokens": PAGE_TOKENS, "layers": layers}


class _Hashing:
    """A file whose bytes are hashed as they pass."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.count = file, hashlib.sha256(), 0

    def write(self, data: Any) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.count += len(data)

    def read(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise UserError("it is truncated")
        self.digest.update(data)
        return data


def _write(
    engine: Engine, runner: BatchedRunner, path: Path, tokens: tuple[int, ...], held: list[tuple[int, list[int]]]
) -> Saved:
    header = {
        **_expected(engine),
        "model": engine.loaded.name,
        "profile": engine.profile.name,
        "tokens": len(tokens),
        "first_pages": [first for first, _ in held],
    }
    text = json.dumps(header).encode()
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            out = _Hashing(file)
            out.write(MAGIC + len(text).to_bytes(8, "little") + text + np.array(tokens, dtype="<i4").tobytes())
            for group, (_, ids) in zip(engine.groups, held, strict=True):
                pages = torch.tensor(ids, dtype=torch.long, device=runner.device)
                for ordinal, _ in group.layers:
                    out.write(runner.arenas[ordinal].read(pages).cpu().numpy().tobytes())
            file.write(out.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {path.name}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return Saved(len(tokens), out.count + _CHECKSUM)


def _read(engine: Engine, path: Path) -> tuple[tuple[int, ...], list[int], list[torch.Tensor], int]:
    """(tokens, first page of each group, canonical bytes by group and layer, bytes of the file), all checked."""
    try:
        with path.open("rb") as file:
            return _read_open(engine, file)
    except UserError as error:
        raise UserError(f"{path.name} can't be restored: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror or error}") from error


def _read_open(engine: Engine, file: BinaryIO) -> tuple[tuple[int, ...], list[int], list[torch.Tensor], int]:
    size = os.fstat(file.fileno()).st_size
    source = _Hashing(file)
    magic = source.read(min(len(MAGIC), size))
    if len(magic) < len(MAGIC) and MAGIC.startswith(magic):
        raise UserError("it is truncated")
    if magic != MAGIC:
        raise UserError(f"it is no slot file: those begin with {MAGIC.decode().strip()}")
    length = int.from_bytes(source.read(8), "little")
    if length > min(size, 2**26):
        raise UserError("it is truncated")
    try:
        header = json.loads(source.read(length))
        tokens, firsts = int(header["tokens"]), [int(first) for first in header["first_pages"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("it is damaged: its header can't be read") from error
    _check_header(engine, header)
    pages = tokens // PAGE_TOKENS
    good = tokens > 0 and tokens % PAGE_TOKENS == 0 and len(firsts) == len(engine.groups)
    wanted = [g.first_visible(tokens) // PAGE_TOKENS for g in engine.groups]
    if not good or firsts != wanted or 4 * tokens > size:
        raise UserError("it is damaged: its header contradicts itself")
    ids = tuple(np.frombuffer(source.read(4 * tokens), dtype="<i4").tolist())
    states = []
    for group, first in zip(engine.groups, firsts, strict=True):
        for ordinal, layer in group.layers:
            k, v = engine.profile.pairs[ordinal]
            width = kv_type(k).nbytes(layer.head_dim[0]) + kv_type(v).nbytes(layer.head_dim[1])
            shape = pages - first, layer.kv_heads, PAGE_TOKENS, width
            data = source.read(math.prod(shape))
            states.append(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape))
    checksum = file.read(_CHECKSUM + 1)
    if len(checksum) < _CHECKSUM:
        raise UserError("it is truncated")
    if checksum != source.digest.digest():
        raise UserError("it is damaged: its checksum doesn't match")
    return ids, firsts, states, size


def _check_header(engine: Engine, header: dict[str, Any]) -> None:
    expected = _expected(engine)
    if header.get("fingerprint") != expected["fingerprint"]:
        raise UserError(
            f"it was saved with another model ({header.get('model')}), this server runs {engine.loaded.name}"
        )
    theirs = header.get("layers")
    if not isinstance(theirs, list) or len(theirs) != len(expected["layers"]):
        raise UserError("it is damaged: its header can't be read")
    for ours, given in zip(expected["layers"], theirs, strict=True):
        if given != ours:
            side = next((s for s in ("k", "v") if given.get(s) != ours[s]), "k")
            raise UserError(
                f"layer {ours['layer']}, {side.upper()}: saved as {_type_text(given.get(side))}, this server stores "
                f"{_type_text(ours[side])} (saved with profile {header.get('profile')}, here {engine.profile.name})"
            )
    if header.get("page_tokens") != PAGE_TOKENS:
        raise UserError(f"its pages have {header.get('page_tokens')} tokens, this version's {PAGE_TOKENS}")


def _type_text(given: Any) -> str:
    if not isinstance(given, dict):
        return "something unknown"
    return f"{given.get('type')} (version {given.get('version')}, rotation seed {given.get('rotation_seed')})"


def _fill(engine: Engine, runner: BatchedRunner, taken: list[list[int]], states: list[torch.Tensor]) -> None:
    """Put the bytes into the allocated pages, which nobody reads yet."""
    rest = iter(states)
    for group, ids in zip(engine.groups, taken, strict=True):
        pages = torch.tensor(ids, dtype=torch.long, device=runner.device)
        for ordinal, _ in group.layers:
            runner.arenas[ordinal].write(pages, next(rest).to(runner.device))
