"""What lies free in the heap is given back, once it is more than may be kept."""

from __future__ import annotations

import sys

import pytest
import torch

from stratakv import heap


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is only looked at on Linux")
def test_what_lies_free_in_the_heap_is_given_back() -> None:
    blocks = 1024
    patient, eager = heap.Heap(128 << 20), heap.Heap(0)
    if eager._trim is None:
        pytest.skip("not glibc's heap")
    patient.trim()
    eager.trim()
    kept = [torch.zeros(25_000) for _ in range(blocks)][::2]  # 100 KB each; holes between them
    full = heap._anonymous()
    patient.trim()
    assert heap._anonymous() > full - blocks * 10_000, "less than what may be kept has come"
    eager.trim()
    assert heap._anonymous() < full - blocks * 30_000
    assert all(not block.any() for block in kept)
