"""A GGUF file's header: its fields, and where its tensors lie. It is read once a process and touches no tensor.

Arrays stay in the file until somebody asks for them: a vocabulary has hundreds of thousands of entries. `GGUFHeader` has what
transformers and our mapping use of gguf-py's reader, under the same names.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from stratakv.errors import UserError

VERSIONS = (2, 3)
_STRING, _ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
# struct's letters of the values that have a size of their own
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64} | {
    f"I{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)
}
_LENGTH = struct.Struct("<Q")
_LEAST_FIELD, _LEAST_TENSOR, _MOST_DIMENSIONS = 8 + 4 + 1, 8 + 4 + 4 + 8, 8


@dataclass(frozen=True)
class GGUFField:
    """One field. type: of the value, or of an array's entries; count: of entries, None where it is no array.

    value: what a field holds that is no array, or an array of arrays; other arrays are read from the file when asked for.
    """

    path: Path
    type: int
    value: Any = None
    count: int | None = None
    offset: int = 0
    nbytes: int = 0

    def contents(self) -> Any:
        """The value; of an array, a list of all of its entries."""
        if self.count is None or self.value is not None:
            return self.value
        return self._strings() if self.type == _STRING else self._numbers().tolist()

    @property
    def types(self) -> list[GGUFValueType]:
        """As gguf-py's reader has them."""
        type_ = GGUFValueType(self.type)
        return [type_] if self.count is None else [GGUFValueType.ARRAY, type_]

    @property
    def parts(self) -> Any:
        """As gguf-py's reader has them, for the parsers of transformers: one indexable value each."""
        if self.count is None:
            return [self.value.encode()] if self.type == _STRING else [np.array([self.value])]
        if self.type == _STRING:
            return [text.encode() for text in self._strings()]
        return self._numbers().reshape(-1, 1) if self.value is None else []

    @property
    def data(self) -> Sequence[int]:
        """Indices into parts."""
        return [0] if self.count is None else range(self.count if self.value is None else 0)

    def _block(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.nbytes)

    def _numbers(self) -> NDArray[Any]:
        return np.frombuffer(self._block(), np.dtype(_NUMBERS[self.type]).newbyteorder("<"))

    def _strings(self) -> list[str]:
        block, at, found = self._block(), 0, []
        for _ in range(self.count or 0):
            start = at + 8
            at = start + _LENGTH.unpack_from(block, at)[0]
            found.append(block[start:at].decode())
        return found


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies. shape: in the file's order, columns first; data_offset: of its first byte in the file `path`."""

    name: str
    tensor_type: GGMLQuantizationType
    shape: tuple[int, ...]
    n_elements: int
    n_bytes: int
    data_offset: int
    path: Path

    @property
    def data(self) -> NDArray[Any]:
        """The tensor, mapped: values, or bytes of blocks, [rows, ..., columns]."""
        raw = np.memmap(self.path, np.uint8, "r", self.data_offset, (self.n_bytes,))
        rows = tuple(reversed(self.shape))
        if (dtype := _DTYPES.get(self.tensor_type.name)) is not None:
            return raw.view(dtype).reshape(rows)
        return raw.reshape(*rows[:-1], -1)


@dataclass(frozen=True, eq=False)
class GGUFHeader:
    """The header of a file, or of all parts of a split one. fields: of the first part; paths: of the parts, in order."""

    paths: tuple[Path, ...]
    fields: Mapping[str, GGUFField]
    tensors: tuple[GGUFTensor, ...]
    # what others made of the header and want to find again
    notes: dict[Any, Any] = field(default_factory=dict, repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """A field's value, or the default where the file has no such field."""
        return self.fields[name].contents() if name in self.fields else default

    def length(self, name: str) -> int:
        """How many entries an array has, 0 where there is none, without reading them."""
        return self.fields[name].count or 0 if name in self.fields else 0


def read_one_header(path: Path) -> GGUFHeader:
    """The header of one file. The same unchanged file is read once a process.

    UserError where it isn't GGUF, is of a version or byte order that nobody reads, or is cut or damaged.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    return _read_once(path, path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=64)
def _read_once(path: Path, where: Path, size: int, _changed: int, _inode: int) -> GGUFHeader:
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise UserError(f"{path} is not a GGUF file: it begins with {magic!r}, a GGUF file with b'GGUF'")
        if size < 24:
            raise UserError(f"{path} is truncated: a GGUF header has 24 bytes at least, the file {size}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_version(path, content)
            try:
                fields, tensors = _parse(where, content, size)
            except (struct.error, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{path} can't be read as GGUF, it is truncated or damaged: {error}") from error
    end = max((tensor.data_offset + tensor.n_bytes for tensor in tensors), default=0)
    if end > size:
        raise UserError(f"{path} is truncated: its tensors need {end:,} bytes, the file has {size:,}")
    return GGUFHeader((where,), fields, tensors)


def _check_version(path: Path, content: mmap.mmap) -> None:
    version = struct.unpack_from("<I", content, 4)[0]
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0:
        raise UserError(
            f"{path} is a GGUF file of a big-endian machine: `gguf-convert-endian FILE little` turns it round"
        )
    known = " and ".join(map(str, VERSIONS))
    remedy = "convert the model again" if version < min(VERSIONS) else "it may be newer than this stratakv, or damaged"
    raise UserError(f"{path} is GGUF version {version}, versions {known} can be read: {remedy}")


def _parse(path: Path, content: mmap.mmap, size: int) -> tuple[dict[str, GGUFField], tuple[GGUFTensor, ...]]:
    tensor_count, field_count = struct.unpack_from("<QQ", content, 8)
    if field_count * _LEAST_FIELD + tensor_count * _LEAST_TENSOR > size:
        raise ValueError(f"{field_count:,} fields and {tensor_count:,} tensors don't fit in {size:,} bytes")
    fields: dict[str, GGUFField] = {}
    at = 24
    for _ in range(field_count):
        name, at = _string(content, at, size)
        (type_,) = struct.unpack_from("<I", content, at)
        found, at = _field(path, content, at + 4, type_, size)
        if name in fields:
            raise ValueError(f"the field {name} is there twice")
        fields[name] = found
    alignment = fields["general.alignment"].value if "general.alignment" in fields else 32
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment {alignment!r} is no power of two")
    entries = []
    for _ in range(tensor_count):
        name, at = _string(content, at, size)
        (dimensions,) = struct.unpack_from("<I", content, at)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        *shape, type_, offset = struct.unpack_from(f"<{dimensions}QIQ", content, at + 4)
        at += 4 + 8 * dimensions + 12
        entries.append((name, tuple(shape), type_, offset))
    begin = -(-at // alignment) * alignment
    tensors = tuple(_tensor(path, *entry[:3], begin + entry[3]) for entry in entries)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        names = [tensor.name for tensor in tensors]
        raise ValueError(f"the tensor {next(name for name in names if names.count(name) > 1)} is there twice")
    return fields, tensors


def _tensor(path: Path, name: str, shape: tuple[int, ...], type_: int, offset: int) -> GGUFTensor:
    try:
        kind = GGMLQuantizationType(type_)
    except ValueError:
        raise UserError(
            f"{path}: {name} is of ggml type {type_}, which gguf-py doesn't know: update it, or quantize the model again"
        ) from None
    values, nbytes = GGML_QUANT_SIZES[kind]
    if shape[0] % values:
        raise ValueError(f"{name} has rows of {shape[0]} values, {kind.name} has blocks of {values}")
    return GGUFTensor(name, kind, shape, prod(shape), prod(shape) // values * nbytes, offset, path)


def _field(path: Path, content: mmap.mmap, at: int, type_: int, size: int) -> tuple[GGUFField, int]:
    if type_ in _NUMBERS:
        (value,) = struct.unpack_from(f"<{_NUMBERS[type_]}", content, at)
        return GGUFField(path, type_, value), at + struct.calcsize(f"<{_NUMBERS[type_]}")
    if type_ == _STRING:
        text, at = _string(content, at, size)
        return GGUFField(path, type_, text), at
    if type_ != _ARRAY:
        raise ValueError(f"a value of the unknown type {type_}")
    kind, count = struct.unpack_from("<IQ", content, at)
    begin = at = at + 12
    if kind in _NUMBERS:
        at += count * struct.calcsize(f"<{_NUMBERS[kind]}")
    elif kind == _STRING:
        if count * 8 > size - at:
            raise ValueError(f"an array of {count:,} texts in a file of {size:,} bytes")
        length = _LENGTH.unpack_from
        for _ in range(count):
            at += 8 + length(content, at)[0]
    elif kind == _ARRAY:
        if count * 12 > size - at:
            raise ValueError(f"an array of {count:,} arrays in a file of {size:,} bytes")
        inner = []
        for _ in range(count):
            entry, at = _field(path, content, at, _ARRAY, size)
            inner.append(entry.contents())
        return GGUFField(path, kind, inner, count), at
    else:
        raise ValueError(f"an array of the unknown type {kind}")
    if at > size:
        raise ValueError(f"an array of {count:,} values ends {at - size:,} bytes behind the file")
    return GGUFField(path, kind, None, count, begin, at - begin), at


def _string(content: mmap.mmap, at: int, size: int) -> tuple[str, int]:
    start = at + 8
    end = start + int(_LENGTH.unpack_from(content, at)[0])
    if end > size:
        raise ValueError(f"a text of {end - start:,} bytes ends behind the file")
    return content[start:end].decode(), end
