"""The option that names a model, the same in every command."""

from __future__ import annotations

import argparse


def add_model_option(parser: argparse.ArgumentParser, *, required: bool = True, default: str | None = None) -> None:
    """Add -m. default: what stands for it where it isn't required."""
    text = "GGUF file, Hugging Face directory, hub name, 'embedded', or a name that `serve` lists"
    shown = f"{text} ({default})" if default else text
    parser.add_argument("-m", "--model", required=required, default=default, help=shown)
