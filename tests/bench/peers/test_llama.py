from __future__ import annotations

from pathlib import Path

import pytest

from stratakv.bench.peers.llama import llama_python, write_attention_model
from stratakv.errors import UserError


def test_model_for_llama_has_the_shape(tmp_path: Path) -> None:
    from gguf import GGUFReader

    write_attention_model(tmp_path / "m.gguf", q_heads=8, kv_heads=2, head_dim=64, context=512)
    reader = GGUFReader(tmp_path / "m.gguf")
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert shapes["blk.1.attn_q.weight"] == (64, 8 * 64)
    assert shapes["blk.0.attn_k.weight"] == (64, 2 * 64)


def test_llama_interpreter_is_checked() -> None:
    with pytest.raises(UserError, match="/nowhere"):
        llama_python("/nowhere")
