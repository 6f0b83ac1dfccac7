"""Slots on disk: the whole pages of a prompt as the types' canonical bytes, refused when anything about them differs.

    "stratakv/slot/1\n" | length of the header, 8 bytes, little endian | header, JSON | token ids, int32 | for each group, each
    of its layers: uint8 [pages, kv_heads, PAGE_TOKENS, k_bytes + v_bytes] | sha256 over all before

Of layers with spans the sealed pages and the fine ones are two groups. The header names the model's fingerprint and a sample of
its weights, the spans, each layer's types with version and rotation seed, which pages each group holds, and the layout of the
states in the file. That is no layout of pages in memory: bytes have the types' own order, so a file outlives another order in
memory, and only the size of pages must be the same. Files before the layout had a name say page_tokens alone; older
ones say nothing of weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS, layout_of
from stratakv.serve.paged_cache import Held, PagedCache

MAGIC = b"stratakv/slot/1\n"
LAYOUT = f"canonical{PAGE_TOKENS}-v1"  # another one when states lie in another order, or in pages of another size
_CHECKSUM = 32


@dataclass(frozen=True)
class Saved:
    """tokens: of the slot's prompt in the file; nbytes: of the file."""

    tokens: int
    nbytes: int


@dataclass(frozen=True)
class Contents:
    """What a file holds, checked. tokens: of whole pages. states: canonical bytes, by group and layer. nbytes: of the file."""

    tokens: tuple[int, ...]
    states: list[torch.Tensor]
    nbytes: int


def _expected(cache: PagedCache) -> dict[str, Any]:
    """What a file must say to fit."""
    layers = []
    for group in cache.groups:
        for ordinal, layer in group.layers:
            storage = group.storage(cache.profile, ordinal)
            types = [
                {"type": side.name, "version": side.version, "rotation_seed": side.rotation_seed}
                for side in (storage.k, storage.v)
            ]
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
    expected = {
        "fingerprint": cache.fingerprint,
        "weights": cache.weights,
        "layout": LAYOUT,
        "page_tokens": PAGE_TOKENS,
        "layers": layers,
    }
    return {**expected, "spans": _rules(cache)} if _rules(cache) else expected


def _rules(cache: PagedCache) -> list[list[Any]]:
    """The spans of each layer that has some, in words."""
    return [[layer.layer, g.spans.text()] for g in cache.groups if g.part == "fine" for _, layer in g.layers]


def _first_pages(cache: PagedCache, pages: int) -> list[int]:
    """Of each group, for a prompt of so many."""
    return [min(group.prefix(pages), default=pages) for group in cache.groups]


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


def write(cache: PagedCache, held: Held, path: Path) -> Saved:
    """Write held pages. The file appears in one step, or not at all; UserError where it can't be written."""
    header = {
        **_expected(cache),
        "model": cache.model,
        "profile": cache.profile.name,
        "tokens": len(held.tokens),
        "first_pages": _first_pages(cache, len(held.tokens) // PAGE_TOKENS),
    }
    text = json.dumps(header).encode()
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            out = _Hashing(file)
            out.write(MAGIC + len(text).to_bytes(8, "little") + text + np.array(held.tokens, dtype="<i4").tobytes())
            for read_layer in cache.read(held):
                out.write(read_layer().numpy().tobytes())
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
    return Saved(len(held.tokens), out.count + _CHECKSUM)


def read(cache: PagedCache, path: Path) -> Contents:
    """Read a file that fits the cache; UserError for one that doesn't, or is damaged."""
    try:
        with path.open("rb") as file:
            return _read_open(cache, file)
    except UserError as error:
        raise UserError(f"{path.name} can't be restored: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror or error}") from error


def _read_open(cache: PagedCache, file: BinaryIO) -> Contents:
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
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError("it is damaged: its header can't be read") from error
    _check_header(cache, header)
    pages = tokens // PAGE_TOKENS
    good = 0 < 4 * tokens <= size and tokens % PAGE_TOKENS == 0
    if not good or firsts != _first_pages(cache, pages):
        raise UserError("it is damaged: its header contradicts itself")
    ids = tuple(np.frombuffer(source.read(4 * tokens), dtype="<i4").tolist())
    states = []
    for group in cache.groups:
        count = len(list(group.prefix(pages)))
        for ordinal, layer in group.layers:
            layout = layout_of(layer, group.storage(cache.profile, ordinal))
            shape = count, layer.kv_heads, layout.page_tokens, layout.k_bytes + layout.v_bytes
            data = source.read(math.prod(shape))
            states.append(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape))
    checksum = file.read(_CHECKSUM + 1)
    if len(checksum) < _CHECKSUM:
        raise UserError("it is truncated")
    if checksum != source.digest.digest():
        raise UserError("it is damaged: its checksum doesn't match")
    return Contents(ids, states, size)


def _check_header(cache: PagedCache, header: dict[str, Any]) -> None:
    expected = _expected(cache)
    if header.get("fingerprint") != expected["fingerprint"]:
        raise UserError(f"it was saved with another model ({header.get('model')}), this server runs {cache.model}")
    if header.get("weights", expected["weights"]) != expected["weights"]:
        raise UserError(
            f"it was saved with other weights of the same shapes ({header.get('model')}), this server runs {cache.model}; "
            "another --dtype makes other weights, too"
        )
    rules = header.get("spans", []), _rules(cache)
    if rules[0] != rules[1]:
        saved, here = (_rules_text(each) for each in rules)
        if saved == here:
            saved, here = (_rules_text(each, "layer {}: ") for each in rules)
        raise UserError(f"it was saved with {saved}, this server has {here}: start one with the same spans")
    theirs = header.get("layers")
    if (
        not isinstance(theirs, list)
        or len(theirs) != len(expected["layers"])
        or not all(type(t) is dict for t in theirs)
    ):
        raise UserError("it is damaged: its header can't be read")
    for ours, given in zip(expected["layers"], theirs, strict=True):
        if given != ours:
            side = next((s for s in ("k", "v") if given.get(s) != ours[s]), "k")
            raise UserError(
                f"layer {ours['layer']}, {side.upper()}: saved as {_type_text(given.get(side))}, this server stores "
                f"{_type_text(ours[side])} (saved with profile {header.get('profile')}, here {cache.profile.name})"
            )
    theirs = header.get("layout", f"canonical{header.get('page_tokens')}-v1")
    if theirs != LAYOUT:
        raise UserError(f"its states are laid out as {theirs}, this version reads {LAYOUT}: save the slot again")


def _rules_text(rules: Any, start: str = "") -> str:
    try:
        texts = dict.fromkeys(f"{start.format(layer)}{text}" for layer, text in rules)
    except (TypeError, ValueError):
        return "something unknown"
    return " and ".join(sorted(texts)) or "no spans"


def _type_text(given: Any) -> str:
    if not isinstance(given, dict):
        return "something unknown"
    return f"{given.get('type')} (version {given.get('version')}, rotation seed {given.get('rotation_seed')})"
