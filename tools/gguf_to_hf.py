"""Writes a GGUF model in Hugging Face format: safetensors, config and tokenizer, for runtimes that read no GGUF files.

Weights are unpacked by transformers' own loader, as `stratakv generate` does where ggml's libraries are missing.

`.venv/bin/python tools/gguf_to_hf.py models/SmolLM2-135M-Instruct.Q4_1.gguf /tmp/smollm2`
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from stratakv.engine.load import load_model
from stratakv.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_hf(source: str, target: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model `source` (a GGUF file, or "embedded") to the new directory `target`, weights in dtype.

    float32 holds the unpacked values exactly, the halves round them. UserError where the file can't be read, or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} is there already: give a new directory")
    loaded = load_model(source, dtype=dtype, packed=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        model: Any = loaded.model
        model.set_attn_implementation("sdpa")  # not ours, which another program doesn't know
        model.hf_quantizer = None  # transformers' mark of a GGUF file, though the weights are unpacked
        del model.config.quantization_config
        model.save_pretrained(unfinished)
        loaded.tokenizer.save_pretrained(unfinished)
        os.replace(unfinished, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a GGUF file, or 'embedded'")
    parser.add_argument("target", type=Path, help="a new directory")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (float32: exact)")
    options = parser.parse_args()
    try:
        write_hf(options.source, options.target, DTYPES[options.dtype])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in options.target.iterdir())
    print(f"{options.target}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
