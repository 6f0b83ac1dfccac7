"""Files of some hundred million random weights, one for each architecture whose layers are fused, for `stratakv bench generate`.

    python benchmarks/architectures.py DIRECTORY [ARCHITECTURE ...]

The sizes are alike (16 layers of 768, 12 query heads and 4 kv heads of 64, MLPs of 2,048, 32,000 words, Q8_0), so that what
differs is the way through a layer. The tests' writer of tiny files makes them; llama.cpp reads them too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from tiny_gguf import write_tiny_gguf

FUSED = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "qwen2moe", "qwen3moe")
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
# transformers reads no field for some sizes, so they are its own; llama.cpp takes an expert's from the MLP's and experts used
MORE = {
    "qwen3": {"head_dim": 128, "num_attention_heads": 6, "num_key_value_heads": 2},
    "gemma2": {"sliding_window": 512, "query_pre_attn_scalar": 64},
    "gemma3": {"sliding_window": 512},
    "qwen2moe": {
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 1536,
        "moe_intermediate_size": 768,
    },
}


def main() -> None:
    """Write the files that are not there yet."""
    directory, *wanted = sys.argv[1:]
    for architecture in wanted or FUSED:
        path = Path(directory) / f"{architecture}-16x768.gguf"
        if not path.exists():
            sizes: dict[str, Any] = {**SIZES, **MORE.get(architecture, {})}
            write_tiny_gguf(path, architecture, **sizes)
        print(path)


if __name__ == "__main__":
    main()
