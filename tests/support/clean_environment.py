"""Virtual environments that hold chosen distributions and nothing else, made from what is installed here: no network."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


class CleanEnvironment:
    """An environment without a compiler: its PATH has its own programs only. Nothing of the checkout is in reach."""

    def __init__(self, where: Path, requirements: Iterable[str]) -> None:
        venv.create(where, symlinks=True)
        self.programs = where / "bin"
        self.python = self.programs / "python"
        (self.site,) = where.glob("lib/python*/site-packages")
        for distribution in installed_closure(requirements):
            for name in {file.parts[0] for file in distribution.files or () if ".." not in file.parts}:
                place, source = self.site / name, Path(str(distribution.locate_file(name)))
                if source.exists() and not place.exists() and source.suffix != ".pth":
                    place.symlink_to(source)

    def install(self, wheel: Path) -> None:
        """What `pip install --no-deps WHEEL` does there."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-index", "--no-deps"]
        done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, inside: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment in the directory `inside`."""
        program, *arguments = command
        variables = {"PATH": str(self.programs), "HOME": str(inside), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=inside,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def installed_closure(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The distributions that requirements ask for, and what those need, as far as they are installed here."""
    waiting, found = [Requirement(each) for each in requirements], {}
    while waiting:
        wanted = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = wanted.name.lower().replace("_", "-")
        if name not in found:
            found[name] = metadata.distribution(wanted.name)
            waiting += [Requirement(each) for each in found[name].requires or ()]
    return list(found.values())
