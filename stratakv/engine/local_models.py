"""Models that lie on this machine: GGUF files here, and in the caches of llama.cpp, LM Studio, Ollama and Hugging Face."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_PART = re.compile(r"-\d{5}-of-\d{5}$")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_MOST = 10_000  # entries of a directory tree that are looked at


@dataclass(frozen=True)
class LocalModel:
    """A model that -m takes by its name. path: a GGUF file, or a directory in Hugging Face format. place: whose it is."""

    name: str
    path: Path
    place: str
    nbytes: int


def local_models(here: Path | None = None, environment: Mapping[str, str] | None = None) -> list[LocalModel]:
    """All of them, those in the directory `here` first; of one name only the first."""
    env = os.environ if environment is None else environment
    found: dict[str, LocalModel] = {}
    for model in _all(here or Path.cwd(), env):
        found.setdefault(model.name, model)
    return list(found.values())


def find_model(name: str) -> Path | None:
    """The file of the model of this name, None: there is none. Ollama's may be named without ":latest", files with ".gguf".

    Directories of Hugging Face's cache are left to its own library, which knows revisions.
    """
    wanted = (name, f"{name}:latest", name.removesuffix(".gguf"))
    return next((model.path for model in local_models() if model.name in wanted and model.path.is_file()), None)


def listed(models: list[LocalModel]) -> str:
    """A line a model: name, size, place."""
    width = max((len(model.name) for model in models), default=0)
    return "\n".join(f"  {model.name:{width}}  {_size(model.nbytes):>9}  {model.place}" for model in models)


def _all(here: Path, env: Mapping[str, str]) -> Iterator[LocalModel]:
    home = Path(env.get("HOME") or env.get("USERPROFILE") or Path.home())
    caches = Path(env.get("XDG_CACHE_HOME") or (home / ("Library/Caches" if sys.platform == "darwin" else ".cache")))
    for folder in (here, here / "models"):
        yield from _files(folder, "this directory" if folder == here else "models", deep=False)
    yield from _files(Path(env.get("LLAMA_CACHE") or caches / "llama.cpp"), "llama.cpp")
    for folder in (home / ".lmstudio/models", home / ".cache/lm-studio/models"):
        yield from _files(folder, "LM Studio")
    chosen = env.get("OLLAMA_MODELS")
    for folder in [Path(chosen)] if chosen else [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]:
        yield from _ollama(folder)
    hub = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    yield from _hub(Path(hub) if hub else Path(env.get("HF_HOME") or caches / "huggingface") / "hub")


def _files(folder: Path, place: str, *, deep: bool = True) -> Iterator[LocalModel]:
    """GGUF files of a folder, without parts of split ones and projectors of images."""
    for path in _walk(folder) if deep else _entries(folder):
        if path.suffix.lower() == ".gguf" and not _PART.search(path.stem) and not path.name.startswith("mmproj"):
            size = _nbytes(path)
            if size:
                yield LocalModel(path.stem, path, place, size)


def _ollama(folder: Path) -> Iterator[LocalModel]:
    """Models by their manifests: manifests/REGISTRY/NAMESPACE/NAME/TAG names the blob."""
    manifests = folder / "manifests"
    for path in _walk(manifests):
        parts = path.relative_to(manifests).parts
        if len(parts) < 4:
            continue
        registry, *namespace, name, tag = parts
        try:
            layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
            digest = next(str(layer["digest"]) for layer in layers if layer["mediaType"] == _OLLAMA_MODEL)
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue
        blob = folder / "blobs" / digest.replace(":", "-")
        space = [] if namespace == ["library"] else namespace
        space = space if registry == "registry.ollama.ai" else [registry, *space]
        size = _nbytes(blob)
        if size:
            yield LocalModel(f"{'/'.join([*space, name])}:{tag}", blob, "Ollama", size)


def _hub(folder: Path) -> Iterator[LocalModel]:
    """Repositories of the hub's cache whose weights are there: models--OWNER--NAME/snapshots/REVISION."""
    for repository in _entries(folder):
        if not repository.name.startswith("models--"):
            continue
        name = "/".join(repository.name.removeprefix("models--").split("--", 1))
        snapshots = sorted(_entries(repository / "snapshots"), key=_changed, reverse=True)
        for snapshot in snapshots[:1]:
            for model in _files(snapshot, "Hugging Face"):
                yield LocalModel(f"{name}/{model.path.name}", model.path, model.place, model.nbytes)
            weights = [_nbytes(path) for path in _entries(snapshot) if path.suffix == ".safetensors"]
            if weights and (snapshot / "config.json").is_file():
                yield LocalModel(name, snapshot, "Hugging Face", sum(weights))


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in the order of their names, not more than a cache has."""
    waiting, seen = [folder], 0
    while waiting:
        for path in _entries(waiting.pop(0)):
            seen += 1
            if seen > _MOST:
                return
            if _is_dir(path):
                waiting.append(path)
            else:
                yield path


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _nbytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"
