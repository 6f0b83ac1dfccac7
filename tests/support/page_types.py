"""A file of the ways in which registered types are packed, which `native/attend_check.cpp` reads."""

from __future__ import annotations

from pathlib import Path

from stratakv.kvtypes import KVType, kv_type, type_names

DIM = 128


def write_types(path: Path) -> int:
    """One line for each way: a type's name, its packing, bits of both planes, and flags. Returns how many there are."""
    lines: dict[str, str] = {}
    for name in type_names():
        if words := " ".join(_words(kv_type(name))):
            lines.setdefault(words, name)
    path.write_text("".join(f"{name} {words}\n" for words, name in lines.items()))
    return len(lines)


def _words(type_: KVType) -> tuple[str, ...]:
    """How kernels read it; nothing where only torch does."""
    if type_.packing is None:
        return ()
    fields, code = type_.fields(DIM), type_.code(DIM)
    if fields[0].kind == "float":
        planes = [sum(field.nbytes for field in fields) // DIM]  # bytes of a float
    else:
        values = DIM // type_.blocks(DIM)
        planes = [8 * field.nbytes // values for field in fields if field.kind == "codes"]
    scales = sum(field.kind == "scale" for field in fields)
    flags = type_.turbo, scales == 2, code.signed_scale, planes[0] < planes[-1], "trellis" in type_.packing
    low, high = max(planes), min(planes) if len(planes) > 1 else 0
    return (type_.packing, str(low), str(high), *(str(int(flag)) for flag in flags))
