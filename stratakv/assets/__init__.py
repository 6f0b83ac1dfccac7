"""Files that come with the package: a small trained model and two texts it has not seen (see README.md here)."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def embedded_model() -> Path:
    """strata-8m as a GGUF file with q8_0 weights: Llama, 12 KV layers, 2 kv heads, head_dim 128, context 4096."""
    return _HERE / "strata-8m-q8_0.gguf"


def tuning_text() -> Path:
    """Dracula, chapters I to VII (UTF-8): what a profile may be chosen on."""
    return _HERE / "dracula-tune.txt"


def judging_text() -> Path:
    """Dracula, chapters XXI to XXVI (UTF-8): what a chosen profile is judged on, and nothing else."""
    return _HERE / "dracula-judge.txt"
