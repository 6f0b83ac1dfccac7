"""Small GGUF files for tests: pieces of a header to put together, changed copies of a file, and parts as gguf-split cuts them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter


def text(value: str | bytes) -> bytes:
    """A text as GGUF stores it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def field(name: str, type_: int, value: bytes) -> bytes:
    """A field: its value's bytes as they are."""
    return text(name) + struct.pack("<I", type_) + value


def header(*fields: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, order: str = "<") -> bytes:
    """A whole header."""
    return b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(fields)) + b"".join(fields + tensors)


def rewrite(
    source: Path,
    target: Path,
    *,
    keep: Callable[[str], bool] = lambda name: True,
    change: Callable[[str, Any], Any] = lambda name, data: data,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
) -> Path:
    """A copy of a file. keep: whether a tensor goes into it; change: a tensor's bytes or values as numpy has them; fields: other
    values of fields, None leaves one out; tensors: float32 arrays to add, in torch's order."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    _write(writer, reader, [t for t in reader.tensors if keep(t.name)], change, fields or {}, tensors or {})
    return target


def split(source: Path, folder: Path, count: int, *, name: str = "model") -> list[Path]:
    """The file cut into parts, NAME-00001-of-0000N.gguf and so on: fields in the first, tensors spread evenly."""
    reader = GGUFReader(source)
    paths = [folder / f"{name}-{number + 1:05}-of-{count:05}.gguf" for number in range(count)]
    share = -(-len(reader.tensors) // count)
    for number, path in enumerate(paths):
        writer = GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
        if number:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        tensors = reader.tensors[number * share : (number + 1) * share]
        _write(writer, reader, tensors, lambda _, data: data, {} if number == 0 else None)
    return paths


def _write(
    writer: Any,
    reader: Any,
    tensors: list[Any],
    change: Any,
    fields: dict[str, Any] | None,
    more: dict[str, Any] | None = None,
) -> None:
    for name, entry in reader.fields.items() if fields is not None else ():
        if name.startswith("GGUF.") or name == "general.architecture" or name in fields:
            continue
        kind, inner = entry.types[0], entry.types[-1] if len(entry.types) > 1 else None
        writer.add_key_value(name, entry.contents(), kind, inner)
    for name, value in (fields or {}).items():
        if value is not None:
            kind = GGUFValueType.get_type(value)
            writer.add_key_value(name, value, GGUFValueType.UINT32 if kind == GGUFValueType.INT32 else kind)
    for tensor in tensors:
        writer.add_tensor(tensor.name, change(tensor.name, tensor.data), raw_dtype=tensor.tensor_type)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
