"""How long a command takes is not what these tests are about."""

from __future__ import annotations

import pytest

from stratakv.cli import patience


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the line for who waits would stand among those that are compared."""
    monkeypatch.setattr(patience, "DELAY_SECONDS", 600)
