"""Every architecture that transformers reads from GGUF: what could stay in its blocks does, and results are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import ARCHITECTURES, matrices, write_tiny_gguf
from transformers import AutoModelForCausalLM

from stratakv.weights import ggml
from stratakv.weights.build import build_packed

pytestmark = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}")
# 1 MiB of a real model's matrices, scaled to these
LARGE = 4096
# small by their nature, or read by the layer's own code: convolutions of a few columns, mamba's states, routers
_OWN = ("conv", "A_log", "x_proj", "dt_proj", "mlp.gate.weight", "shared_expert_gate", "wpe", "position_embed")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_large_matrix_stays_packed_and_says_the_same(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "tiny.gguf"
    config = write_tiny_gguf(path, architecture)
    model, weights = build_packed(path, config, torch.float32, exact=True)
    assert weights.unpacked == () and weights.unused == ()
    assert weights.packed_bytes + weights.plain_bytes <= 1.05 * path.stat().st_size
    left = {name: p.numel() for name, p in matrices(model).items() if p.numel() * 34 // 32 >= LARGE}
    assert not [name for name in left if not any(word in name for word in _OWN)], left
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, config=config, dtype=torch.float32)
    ids = torch.randint(3, 256, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = model(ids, use_cache=False).logits, plain.eval()(ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
