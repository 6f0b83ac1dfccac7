"""A model in several GGUF files, as gguf-split cuts it: NAME-00001-of-00003.gguf and so on, read from any part's name."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

from stratakv.errors import UserError
from stratakv.weights.gguf_header import GGUFHeader, read_one_header

_NAME = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_gguf_header(path: Path) -> GGUFHeader:
    """The header of a GGUF file; of a split model any part's path gives all parts', as one.

    UserError where `read_one_header` refuses a file, and where a part is missing or of another model.
    """
    header = read_one_header(path)
    count = header.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return header
    found = _NAME.fullmatch(path.name)
    if found is None or int(found["count"]) != count:
        raise UserError(
            f"{path} is part {header.get('split.no', 0) + 1} of a model in {count} files: "
            f"name them all NAME-00001-of-{count:05}.gguf to NAME-{count:05}-of-{count:05}.gguf, as gguf-split does"
        )
    paths = [path.with_name(f"{found['name']}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise UserError(
            f"{path} is part of a model in {count} files, {len(missing)} of them "
            f"{'is' if len(missing) == 1 else 'are'} not in {path.parent}: {', '.join(missing[:3])}"
            f"{' and so on' if len(missing) > 3 else ''}"
        )
    parts = [read_one_header(part) for part in paths]
    for number, part in enumerate(parts):
        _check_belongs(parts[0], part, number, count)
    return _joined(tuple(parts))


def _check_belongs(first: GGUFHeader, part: GGUFHeader, number: int, count: int) -> None:
    theirs = part.get("split.no"), part.get("split.count")
    if theirs != (number, count):
        said = (
            f"part {theirs[0] + 1} of {theirs[1]}" if all(isinstance(n, int) for n in theirs) else "no part of several"
        )
        raise UserError(f"{part.paths[0]} says that it is {said}, its name that it is part {number + 1} of {count}")
    for name in ("split.tensors.count", "general.architecture", "general.name"):
        mine, other = first.get(name), part.get(name)
        if other is not None and other != mine:
            raise UserError(
                f"{part.paths[0]} is a part of another model than {first.paths[0].name}: {name} {other}, not {mine}"
            )


@lru_cache(maxsize=16)
def _joined(parts: tuple[GGUFHeader, ...]) -> GGUFHeader:
    first = parts[0]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    twice = [name for name, times in Counter(tensor.name for tensor in tensors).items() if times > 1]
    expected = first.get("split.tensors.count", len(tensors))
    if twice or expected != len(tensors):
        why = f"{twice[0]} is in two of them" if twice else f"{len(tensors)} tensors are there, {expected} should be"
        raise UserError(f"{first.paths[0]}: its {len(parts)} parts are not of one model: {why}")
    return type(first)(tuple(part.paths[0] for part in parts), first.fields, tensors)
