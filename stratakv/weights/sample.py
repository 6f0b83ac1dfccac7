"""Telling weights of the same shapes apart, a fine-tuned model's from the original's, without reading them all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from stratakv.weights.packed import PackedTensor

_VALUES = 16
_BYTES = 64


def weights_sample(model: Any) -> str:
    """sha256 over some values of each weight, packed ones' bytes; another one too where they have another dtype."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // _VALUES)][:_VALUES].cpu().contiguous()
        digest.update(f"{name} {weight.dtype}\n".encode() + some.view(torch.uint8).numpy().tobytes())
    for tensor in _packed(model):
        middle = tensor.offset + max(0, tensor.nbytes - _BYTES) // 2
        digest.update(f"{tensor.name}\n".encode() + tensor.file.read(middle, min(_BYTES, tensor.nbytes)))
    return digest.hexdigest()


def _packed(model: Any) -> Iterator[PackedTensor]:
    for module in model.modules():
        for found in (getattr(module, "tensor", None), *getattr(module, "tensors", ())):
            if isinstance(found, PackedTensor):
                yield found
