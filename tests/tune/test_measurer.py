"""What stages say of their time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import loaded_tiny

from stratakv.tune.measurer import Measurer
from stratakv.tune.store import Store


def test_passes_of_other_lengths_are_counted_by_their_tokens(tmp_path: Path) -> None:
    said: list[str] = []
    measurer = Measurer(
        loaded_tiny("llama"), torch.zeros(2, 100, dtype=torch.int64), Store(tmp_path, {}), say=said.append
    )
    with measurer.stage("far", tokens=400):
        measurer.add_cost("far", 8.0, 2)  # 10 ms a token
    with measurer.stage("near", 5):
        pass
    with measurer.stage("far", 5, tokens=1000):
        pass
    assert said == [
        "near: 5 forward passes of 100 tokens at most, about 5 s",
        "far: 5 forward passes of 1,000 tokens at most, about 50 s",
    ]
    assert measurer.costs["far"].passes == pytest.approx(2)
