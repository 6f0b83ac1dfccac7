"""What a model is, without loading its weights: config, cache geometry, fingerprint, number of weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from stratakv.engine.cache.architecture import check_architecture
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.gguf_config import completed
from stratakv.engine.gguf_file import GGUFModel, read_gguf_model
from stratakv.engine.local_models import find_model
from stratakv.errors import UserError
from stratakv.profile.geometry import ModelGeometry
from stratakv.weights.hand_over import handed_over

EMBEDDED = "embedded"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_CONFIG_ERRORS = (OSError, ValueError, LookupError, AttributeError, TypeError)


@dataclass(frozen=True)
class ModelDescription:
    """A model on disk. path: a GGUF file or a directory in Hugging Face format. values: number of weights.

    fingerprint: sha256 over the cache geometry and the names, types and shapes of the weights.
    """

    path: Path
    name: str
    config: PreTrainedConfig
    geometry: ModelGeometry
    fingerprint: str
    values: int
    gguf: GGUFModel | None = None
    warnings: tuple[str, ...] = ()


def describe_model(source: str | Path) -> ModelDescription:
    """Describe a GGUF file, a directory in Hugging Face format, a hub name, or "embedded", the model in this package.

    Raises UserError for what is missing, truncated, of another format, or not supported by transformers.
    """
    path = _locate(source)
    gguf = read_gguf_model(path) if path.is_file() else None
    config, warnings = _read_gguf_config(path, gguf) if gguf else (_read_config(path), [])
    name = path.stem if gguf else Path(os.path.abspath(path)).name
    if str(source) != EMBEDDED and not Path(source).exists():
        name = str(source)
    check_architecture(config, name)
    values, digest = (gguf.values, gguf.tensors_digest) if gguf else _safetensors_summary(path)
    geometry = geometry_of(config, name)
    shape = json.dumps([asdict(layer) for layer in geometry.layers], sort_keys=True)
    fingerprint = hashlib.sha256(f"{config.model_type}\n{shape}\n{digest}".encode()).hexdigest()
    return ModelDescription(path, name, config, geometry, fingerprint, values, gguf, tuple(warnings))


def _locate(source: str | Path) -> Path:
    if str(source) == EMBEDDED:
        from stratakv.assets import embedded_model

        return embedded_model()
    text = str(source)
    try:
        path = Path(source).expanduser()
        if text.strip() and path.exists():
            return path
    except (OSError, RuntimeError) as error:  # no such user's home, a name that is too long, a directory that is closed
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(f"no model at {text[:200]!r}: {reason}; give another path, or a name") from error
    if text.strip() and (found := find_model(text)) is not None:
        return found
    if text.endswith(".gguf") or not _HUB_NAME.fullmatch(text):
        raise UserError(
            f"no model at {text!r}: give a GGUF file, a directory in Hugging Face format, a hub name, "
            f"a name that `stratakv serve` lists when it gets no -m, or '{EMBEDDED}'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{text} is no file or directory here, and as a hub name it is neither cached nor can it be downloaded "
            f"({reason}); give a path, or download it while online"
        ) from error


def _read_config(path: Path) -> PreTrainedConfig:
    if not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json: give a directory in Hugging Face format or a GGUF file")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
        return config
    except _CONFIG_ERRORS as error:
        raise UserError(f"{path}/config.json can't be read by transformers: {_first_line(error)}") from error


def _read_gguf_config(path: Path, gguf: GGUFModel) -> tuple[PreTrainedConfig, list[str]]:
    try:
        with handed_over(gguf.header), _quiet():
            config = completed(AutoConfig.from_pretrained(path.parent, gguf_file=path.name), gguf.header)
    except _CONFIG_ERRORS as error:
        raise UserError(
            f"{path}: transformers can't read a GGUF of architecture {gguf.architecture!r}: {_first_line(error)}"
        ) from error
    warnings = []
    text: Any = config.get_text_config(decoder=True)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        id_ = getattr(text, name, None)
        if isinstance(id_, int) and not 0 <= id_ < text.vocab_size:
            warnings.append(f"{name} {id_} in the file is outside of the vocabulary of {text.vocab_size}: ignored")
            setattr(text, name, None)
    return config, warnings


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns about what it puts together from a part of a file's fields, before the rest is added."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _safetensors_summary(path: Path) -> tuple[int, str]:
    """(number of weights, sha256 over names, dtypes and shapes) of the safetensors files, from their headers alone."""
    files = _weight_files(path)
    if not files:
        raise UserError(f"{path} holds no *.safetensors weights: convert other formats with save_pretrained() first")
    tensors: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                if size > file.stat().st_size:
                    raise ValueError(f"its header says that it has {size:,} bytes")
                header = json.loads(stream.read(size))
            end = max((info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
            raise UserError(f"{file} is no whole safetensors file: {_first_line(error)}") from error
        if 8 + size + end > file.stat().st_size:
            raise UserError(f"{file} is truncated: {8 + size + end:,} bytes expected, {file.stat().st_size:,} there")
        tensors.update({n: (i["dtype"], i["shape"]) for n, i in header.items() if n != "__metadata__"})
    values = 0
    for _, shape in tensors.values():
        count = 1
        for n in shape:
            count *= n
        values += count
    return values, hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest()


def _weight_files(path: Path) -> list[Path]:
    """The files that transformers reads, and not what lies beside them; UserError where one that the index names is not there."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} can't be read: {_first_line(error)}; download it again") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of its {len(names)} weight files, {missing[0]} first: download them again"
        )
    return [path / name for name in names]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
