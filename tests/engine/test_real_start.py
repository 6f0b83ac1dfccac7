"""The real models start in seconds: their headers and tokenizers, without weights."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from real_models import GEMMA3, SMOLLM2, needs_models

from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_tokenizer


@pytest.mark.real
@needs_models
@pytest.mark.parametrize(
    ("path", "layers", "vocabulary", "seconds"),
    [(SMOLLM2, 30, 49_152, 3.0), (GEMMA3, 18, 262_144, 12.0)],
    ids=["smollm2", "gemma3"],
)
def test_header_and_tokenizer(path: Path, layers: int, vocabulary: int, seconds: float) -> None:
    started = time.process_time()  # of the CPU, so that other jobs don't count; gguf-py's reader took 15 and 60
    description = describe_model(path)
    tokenizer = load_tokenizer(description)
    assert time.process_time() - started < seconds
    assert len(description.geometry.kv_layers) == layers
    assert len(tokenizer) == vocabulary
    ids = tokenizer("In 1998 there were 12,345 castles.", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "In 1998 there were 12,345 castles."
