"""Reading a GGUF file's header: is it whole, what is in it, and how transformers is kept from tripping over it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratakv.errors import UserError

_SPECIAL_IDS = ("bos", "eos", "unknown", "padding")


@dataclass(frozen=True)
class GGUFHeader:
    """architecture: llama.cpp's name. vocabulary: number of tokens. values: number of weights. tensors_digest: sha256 over
    the tensors' names, types and shapes. bad_special_ids: special tokens whose id lies outside of the vocabulary."""

    architecture: str
    vocabulary: int
    values: int
    tensors_digest: str
    bad_special_ids: dict[str, int]
    add_bos: bool | None


def read_header(path: Path) -> GGUFHeader:
    """Read and check a GGUF header; UserError when the file is truncated or something else."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise UserError(f"{path} is not a GGUF file: it begins with {magic!r}, a GGUF file with b'GGUF'")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not _is_long(field)}
        tokens = reader.fields.get("tokenizer.ggml.tokens")
        vocabulary = len(tokens.data) if tokens else 0
        tensors = [(t.name, t.tensor_type.name, [int(n) for n in t.shape], int(t.n_bytes)) for t in reader.tensors]
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as GGUF, it is truncated or damaged: {error}") from error
    if end > path.stat().st_size:
        raise UserError(f"{path} is truncated: its tensors need {end:,} bytes, the file has {path.stat().st_size:,}")
    if "general.architecture" not in fields or not tensors:
        raise UserError(f"{path} holds no language model: no architecture or no tensors in its header")
    digest = hashlib.sha256(repr(sorted(tensors)).encode()).hexdigest()
    special = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in _SPECIAL_IDS}
    bad = {name: int(id_) for name, id_ in special.items() if id_ is not None and vocabulary and int(id_) >= vocabulary}
    values = sum(_product(shape) for _, _, shape, _ in tensors)
    architecture = str(fields["general.architecture"])
    return GGUFHeader(architecture, vocabulary, values, digest, bad, fields.get("tokenizer.ggml.add_bos_token"))


@contextmanager
def special_ids_in_range(bad: dict[str, int]) -> Iterator[None]:
    """While transformers builds the tokenizer, hide special ids that lie outside of the vocabulary: it would index with them."""
    try:
        from transformers.integrations.gguf import reader
    except ImportError:  # versions before 5.20 don't index with them
        yield
        return
    original = reader.read_gguf_metadata

    def mended(*args: Any, **kwargs: Any) -> Any:
        metadata, rest = original(*args, **kwargs)
        hidden = {f"tokenizer.ggml.{name}_token_id" for name in bad}
        return {key: value for key, value in metadata.items() if key not in hidden}, rest

    reader.read_gguf_metadata = mended
    try:
        yield
    finally:
        reader.read_gguf_metadata = original


def _is_long(field: Any) -> bool:
    return len(field.data) > 64


def _product(shape: list[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
