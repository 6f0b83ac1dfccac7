from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Running, running


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """One server for all tests of this folder."""
    with tempfile.TemporaryDirectory() as directory, running(slot_save_path=Path(directory), metrics=True) as started:
        yield started
