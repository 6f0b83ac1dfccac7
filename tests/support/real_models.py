"""The two real models of `make models`, for tests marked `real`: other people's, of a size that people use."""

from __future__ import annotations

from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = MODELS / "gemma-3-270m-q4_k_m.gguf"

needs_models = pytest.mark.skipif(
    not (SMOLLM2.is_file() and GEMMA3.is_file()), reason="the real models are not here: `make models` fetches them"
)
