"""While transformers works on a GGUF file, it gets the header from us: its own readers take seconds, several times over."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

from stratakv.errors import UserError
from stratakv.weights.gguf_header import GGUFField, GGUFHeader

_TOKENS = "tokenizer.ggml.tokens"
# Entries that only a tokenizer needs, which asks for them by another way
_LONG = ("tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")

_LOCK = threading.RLock()


@contextmanager
def handed_over(header: GGUFHeader, hidden: Container[str] = ()) -> Iterator[None]:
    """What transformers reads of the header's file comes from the header, of all parts of a split model.

    hidden: fields that it doesn't get to see. Versions before 5.20 have other readers and keep them; a split model is an error
    there.
    """
    try:
        from transformers.integrations.gguf import reader as theirs
    except ImportError:
        if len(header.paths) > 1:
            raise UserError(
                f"{header.paths[0]}: models in several files need transformers 5.20 or later, or join them with llama-gguf-split"
            ) from None
        yield
        return
    with _LOCK, ExitStack() as stack:  # two that are open at once would restore each other's
        for home, name, value in _replacements(header, hidden, theirs):
            stack.enter_context(_replaced(home, name, value))
        yield


def _replacements(header: GGUFHeader, hidden: Container[str], theirs: Any) -> list[tuple[Any, str, Any]]:
    """(home, name, function instead). theirs: transformers' reader; files that aren't the header's go to what was there."""
    loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    from transformers.integrations import gguf as package

    paths = set(header.paths)
    read_metadata, load_state_dict, from_file = (
        theirs.read_gguf_metadata,
        theirs.load_gguf_state_dict,
        theirs.GgufHeader.from_file,
    )
    load_checkpoint, whole_reader = loader.load_gguf_checkpoint, gguf.GGUFReader

    def ours(path: Any) -> bool:
        return Path(path).absolute() in paths

    def metadata(path: Any, string_arrays: Container[str] = ()) -> Any:
        if not ours(path):
            return read_metadata(path, string_arrays)
        return _metadata(header, string_arrays, hidden), tuple(tensor.name for tensor in header.tensors)

    def checkpoint(path: Any, return_tensors: bool = False, *args: Any, **kwargs: Any) -> Any:
        if return_tensors or not ours(path):
            return load_checkpoint(path, return_tensors, *args, **kwargs)
        key = "transformers", tuple(name for name in header.fields if name in hidden)
        if key not in header.notes:
            header.notes[key] = load_checkpoint(path)
        # the tokens stand for their number alone, nobody changes them
        return {part: copy.deepcopy(made) if part != "tokenizer" else made for part, made in header.notes[key].items()}

    def reader(path: Any, *args: Any) -> Any:
        return _Reader(header, hidden) if ours(path) else whole_reader(path, *args)

    def state_dict(found: Any) -> Any:
        return _lazy_tensors(header, theirs.LazyGgufTensor) if ours(found.path) else load_state_dict(found)

    def their_header(path: Any) -> Any:
        return _their_header(header, theirs) if ours(path) else from_file(path)

    found: list[tuple[Any, str, Any]] = [(gguf, "GGUFReader", reader), (loader, "load_gguf_checkpoint", checkpoint)]
    # transformers makes this map anew for every module of a model
    found.append((gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)))
    for home in (theirs, package, sys.modules.get("transformers.quantizers.quantizer_gguf")):
        if home is not None:
            found += [(home, "read_gguf_metadata", metadata), (home, "load_gguf_state_dict", state_dict)]
    return [*found, (theirs.GgufHeader, "from_file", staticmethod(their_header))]


@contextmanager
def _replaced(home: Any, name: str, value: Any) -> Iterator[None]:
    there = name in vars(home)
    before = vars(home).get(name)
    setattr(home, name, value)
    try:
        yield
    finally:
        if there:
            setattr(home, name, before)
        else:
            delattr(home, name)


def _metadata(header: GGUFHeader, texts: Container[str], hidden: Container[str]) -> dict[str, Any]:
    """As `read_gguf_metadata`: arrays of texts that nobody asked for are their length."""
    found = {}
    for name, field in header.fields.items():
        if name not in hidden:
            counted = field.count is not None and field.type == GGUFValueType.STRING and name not in texts
            found[name] = field.count if counted else field.contents()
    return found


class _Reader:
    """What `load_gguf_checkpoint` uses of gguf-py's reader. Of the tokens it uses their number."""

    def __init__(self, header: GGUFHeader, hidden: Container[str]) -> None:
        self.tensors = header.tensors
        self.fields: dict[str, Any] = {
            name: field
            for name, field in header.fields.items()
            if not (name in hidden or name in _LONG or _misread(name, field))
        }
        if _TOKENS in self.fields:
            self.fields[_TOKENS] = _only_counted(self.fields[_TOKENS])


def _misread(name: str, field: GGUFField) -> bool:
    """Fields that transformers takes for something else; `engine/gguf_config.py` reads them."""
    # of the first it reads the lengths of their names, of the second it takes lists for numbers
    return name.startswith("gpt-oss.rope.scaling.") or (name.startswith("gemma4.") and field.count is not None)


def _only_counted(field: GGUFField) -> Any:
    """A field of as many entries that are read in no time."""
    entry = [True]
    return SimpleNamespace(
        parts=[entry], data=[0] * (field.count or 0), types=[GGUFValueType.ARRAY, GGUFValueType.BOOL]
    )


def _their_header(header: GGUFHeader, theirs: Any) -> Any:
    tensors = tuple(
        theirs.TensorInfo(t.name, tuple(reversed(t.shape)), int(t.tensor_type), t.data_offset, t.n_bytes)
        for t in header.tensors
    )
    return theirs.GgufHeader(str(header.paths[0]), header.get("general.architecture"), tensors, 0)


def _lazy_tensors(header: GGUFHeader, lazy: Callable[..., Any]) -> dict[str, Any]:
    """As `load_gguf_state_dict`: shapes of values, or of blocks' bytes."""
    floats = ("F32", "F16", "BF16")
    found = {}
    for tensor in header.tensors:
        raw = np.memmap(tensor.path, np.uint8, "r", tensor.data_offset, (tensor.n_bytes,))
        rows = tuple(reversed(tensor.shape))
        shape = rows if tensor.tensor_type.name in floats else (*rows[:-1], tensor.n_bytes // _product(rows[:-1]))
        found[tensor.name] = lazy(raw, int(tensor.tensor_type), shape)
    return found


def _product(numbers: tuple[int, ...]) -> int:
    total = 1
    for n in numbers:
        total *= n
    return total
