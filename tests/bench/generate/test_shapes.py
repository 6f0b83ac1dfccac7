from __future__ import annotations

from pathlib import Path

import torch

from stratakv.bench.generate.shapes import qwen3_config, random_model, write_random_gguf

SMALL = {
    **qwen3_config(),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 256,
}


def test_random_model_has_the_shape_and_finite_logits() -> None:
    model = random_model(SMALL)
    assert model.dtype == torch.bfloat16
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 256)
    assert bool(logits.isfinite().all())
    assert float(logits.float().std()) > 0


def test_random_gguf_is_read_as_the_same_geometry(tmp_path: Path) -> None:
    from gguf import GGUFReader

    write_random_gguf(tmp_path / "m.gguf", SMALL)
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    model = random_model(SMALL)
    assert len(shapes) == len(list(model.parameters()))  # tied embeddings count once on both sides
    assert shapes["token_embd.weight"] == (64, 256)
    assert shapes["blk.1.attn_k.weight"] == (64, 128)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sum(int(torch.tensor(shape).prod()) for shape in shapes.values()) == parameters
