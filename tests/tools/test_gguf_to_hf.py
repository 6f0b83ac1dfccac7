"""A GGUF model in Hugging Face format is the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_to_hf import write_hf

from stratakv import UserError, load_model
from stratakv.assets import judging_text


def test_it_has_the_same_logits_and_tokens(tmp_path: Path) -> None:
    write_hf("embedded", tmp_path / "strata")
    text = judging_text().read_text(encoding="utf-8")[:400]
    logits = []
    for loaded in (load_model("embedded", packed=False), load_model(tmp_path / "strata")):
        tokens = loaded.tokenizer.encode(text)
        with torch.inference_mode():
            logits.append((tokens, loaded.model(torch.tensor([tokens])).logits))
    assert logits[0][0] == logits[1][0]
    assert torch.equal(logits[0][1], logits[1][1])
    with pytest.raises(UserError, match="is there already"):
        write_hf("embedded", tmp_path / "strata")
