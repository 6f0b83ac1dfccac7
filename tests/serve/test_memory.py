"""Memory is bounded: requests of lengths never seen before leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_models import GEMMA3, SMOLLM2, needs_models

from stratakv.cli import serve

SCRIPT = Path(__file__).parents[1] / "support" / "memory_growth.py"
ALLOWED = 64  # MiB


def growth(model: str | Path, requests: int, longest: int, first: int = 50) -> float:
    """MiB, as a user's process grows: without the tests' settings of malloc."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, str(SCRIPT), str(model), str(requests), str(longest), str(first)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.real
@needs_models
def test_a_hundred_requests() -> None:
    assert growth(SMOLLM2, 100, 60, first=24) < ALLOWED


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "model",
    [
        "embedded",
        pytest.param(SMOLLM2, marks=[pytest.mark.real, needs_models]),
        pytest.param(GEMMA3, marks=[pytest.mark.real, needs_models]),
    ],
    ids=["embedded", "smollm2", "gemma3"],
)
def test_a_thousand_requests(model: str | Path) -> None:
    assert growth(model, 1000, 500) < ALLOWED


SIXTEEN_BITS = """
import torch
from memory_growth import anonymous_mib
products = [torch.nn.Linear(256, 512, dtype=torch.bfloat16) for _ in range(2)]
with torch.inference_mode():
    for tokens in range(1, 300):
        if tokens == 20:
            before = anonymous_mib()
        for product in products:
            product(torch.ones(tokens, 256, dtype=torch.bfloat16))
print(anonymous_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_in_sixteen_bits_keep_few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """262 MiB for 400 lengths of three products, with oneDNN's own limit."""
    for name in serve._ONEDNN:
        monkeypatch.setenv(name, "16")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    out = subprocess.run([sys.executable, "-c", SIXTEEN_BITS], capture_output=True, text=True, check=True).stdout
    assert float(out) < 32
