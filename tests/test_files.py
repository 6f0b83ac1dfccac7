"""Files are written in one step, or not at all; what is no file is never replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stratakv.errors import UserError
from stratakv.files import check_directory, check_writable, write_file


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "real.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    check_writable(link)
    write_file(link, b"new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["link.json", "real.json", "there"]


def test_a_pipe_gets_the_content_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        write_file(pipe, b"content")
        assert reader.read() == b"content"
    assert pipe.is_fifo() and [each.name for each in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("redirected", [True, False])
def test_standard_output_by_its_name_gets_the_content(redirected: bool, tmp_path: Path) -> None:
    code = "from stratakv.files import *; check_writable('/dev/stdout'); write_file('/dev/stdout', b'content')"
    path = tmp_path / "out"
    with path.open("w") as file:
        found = subprocess.run([sys.executable, "-c", code], check=True, stdout=file if redirected else subprocess.PIPE)
    assert (path.read_bytes() if redirected else found.stdout) == b"content"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_directories_that_cannot_be_written_to(tmp_path: Path) -> None:
    check_directory(tmp_path, "--out")
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path / "file", Path("/proc")):
        with pytest.raises(UserError, match=f"--out {path}"):
            check_directory(path, "--out")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/file", "round"])
def test_names_that_no_file_can_have_are_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "round")
    for tried in (check_writable, lambda path: write_file(path, b""), lambda path: check_directory(path, "--out")):
        with pytest.raises(UserError, match=r"too long|Symlink loop|symbolic links|no such directory"):
            tried(tmp_path / name)
