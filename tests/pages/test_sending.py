"""Numbers for a GPU are copied from pinned memory, so that nothing waits for its stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stratakv.pages.sending import sent


def test_numbers_arrive() -> None:
    numbers = np.arange(12).reshape(3, 4)[:, ::2]
    assert torch.equal(sent(numbers, torch.device("cpu")), torch.tensor([[0, 2], [4, 6], [8, 10]]))
    assert sent(numbers, torch.device("meta")).shape == (3, 2)


def test_a_gpu_reads_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, gpu = torch.arange(3), torch.device("cuda")

    def to(self: torch.Tensor, device: torch.device, *, non_blocking: bool) -> Any:
        return self is pinned, device, non_blocking

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert sent(np.arange(3), gpu) == (True, gpu, True)
