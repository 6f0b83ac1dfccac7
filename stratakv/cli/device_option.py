"""The option that says where a model and its cache are, the same in every command."""

from __future__ import annotations

import argparse

from stratakv.errors import UserError


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device, a CPU where nothing is said."""
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda or cuda:N: where the model and its cache are, as a whole (cpu)"
    )


def checked_device(text: str, others: str = "") -> str:
    """cpu, cuda or cuda:N. others: what else may be written there, for the message. UserError for anything else, and where torch
    sees no such GPU."""
    import torch

    device: torch.device | None
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {text}: it must be cpu, cuda{', cuda:N' if others else ' or cuda:N'}{others}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {text}: torch sees no GPU here (a CPU build of torch never does)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {text}: torch sees {torch.cuda.device_count()} GPUs here, the first is cuda:0")
    return text
