"""A command that takes its time says what it is about, one that doesn't says nothing."""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

import pytest

from stratakv.cli import patience


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "starting"),
        ("embedded", "reading embedded"),
        ("m.gguf", "reading m.gguf, 3.00 MiB"),
        ("small.gguf", "reading small.gguf, 1.50 KiB"),
        ("x" * 300, "reading x"),
    ],
)
def test_who_waits_is_told(model, said, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(bytes(3 * 2**20))
    (tmp_path / "small.gguf").write_bytes(bytes(1536))
    monkeypatch.setattr(patience, "DELAY_SECONDS", 0.01)
    args = argparse.Namespace() if model is None else argparse.Namespace(model=model)
    with patience.patience("show", args):
        deadline, err = time.monotonic() + 10, ""
        while not err and time.monotonic() < deadline:
            time.sleep(0.01)
            err = capsys.readouterr().err
    assert err.startswith(f"stratakv show: {said}") and err.count("\n") == 1


def test_who_doesn_t_wait_is_not(capsys):
    with pytest.raises(KeyError), patience.patience("show", argparse.Namespace(model="embedded")):
        raise KeyError
    assert capsys.readouterr().err == ""
    assert not [
        thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.finished
    ]
