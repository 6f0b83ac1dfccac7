from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from make_embedded_model import halves_to_pairs, write_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from stratakv.assets import embedded_model, judging_text

STRATA_8M = Path(__file__).resolve().parents[3] / "shared" / "models" / "strata-8m"
needs_source = pytest.mark.skipif(not STRATA_8M.exists(), reason="needs strata-8m beside the checkout")

AWKWARD = [
    "naïve café, 日本語, Ωμέγα, नमस्ते, 🧛🏽‍♂️",
    "12345 3.14159 1,000,000 0x7f ½ ²",
    "a  b   c\t\td\n\n\n   e  \n \r\n x   ",
    "   leading and trailing   ",
    "don't I'll we've DON'T 's",
    "<|bos|>once<|eos|> upon<|bos|>",
    "\x00\x01\x7f\u00a0\u200b",
    "\n",
    " ",
    "",
]


@needs_source
def test_the_committed_file_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    write_gguf(STRATA_8M, tmp_path / "again.gguf", "strata-8m")
    assert (tmp_path / "again.gguf").read_bytes() == embedded_model().read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.gguf"]


@needs_source
def test_logits_match_the_source_within_the_error_of_q8_0() -> None:
    path = embedded_model()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    source = AutoModelForCausalLM.from_pretrained(STRATA_8M, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(STRATA_8M)
    ids = tokenizer(judging_text().read_text(encoding="utf-8")[:4000], return_tensors="pt").input_ids[:, :768]
    with torch.no_grad():
        log_p, log_q = (m(ids).logits.log_softmax(-1) for m in (source, model))
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert 0 < divergence < 3e-4
    assert (log_p.argmax(-1) == log_q.argmax(-1)).float().mean() > 0.97


@needs_source
def test_the_tokenizer_gives_the_ids_of_the_source() -> None:
    path = embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    source = AutoTokenizer.from_pretrained(STRATA_8M)
    for text in [*AWKWARD, judging_text().read_text(encoding="utf-8")[:20_000]]:
        expected = source(text, add_special_tokens=False).input_ids
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *expected]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


def test_rows_of_a_head_are_interleaved() -> None:
    weight = np.arange(8, dtype=np.float32).reshape(8, 1)  # two heads of four rows
    assert halves_to_pairs(weight, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@needs_source
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "qwen2", "only Llama models"),
        ("attention_bias", True, "only Llama models"),
        ("vocab_size", 4095, "ids are not 0 to 4094"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "only plain RoPE"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    for path in STRATA_8M.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = LlamaConfig.from_pretrained(STRATA_8M).to_dict() | {key: value}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path, tmp_path / "out.gguf", "x")
    assert not (tmp_path / "out.gguf").exists()


@needs_source
def test_rows_that_are_no_multiple_of_32_are_refused(tmp_path: Path) -> None:
    for path in STRATA_8M.iterdir():
        (tmp_path / path.name).symlink_to(path)
    tensors = load_file(STRATA_8M / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(192, 500, dtype=torch.bfloat16)
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="rows of 500 values"):
        write_gguf(tmp_path, tmp_path / "out.gguf", "x")
