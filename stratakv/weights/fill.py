"""Weights that transformers passes over when it unpacks a GGUF file, put into the unpacked model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from gguf import dequantize
from torch import nn

from stratakv.weights.gguf_header import GGUFHeader
from stratakv.weights.names import EXPERTS


def fill(model: nn.Module, header: GGUFHeader, names: dict[str, str], wanted: Collection[str]) -> set[str]:
    """Unpack the wanted tensors into the weights that `names` says; returns these weights' names.

    ValueError where one has another shape in the file.
    """
    filled = set()
    with torch.no_grad():
        for tensor in header.tensors:
            if tensor.name not in wanted:
                continue
            view = _view(model, tensor.name, names[tensor.name])
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            if view.shape != values.shape:
                raise ValueError(
                    f"{tensor.name} is {tuple(values.shape)} in the file, {tuple(view.shape)} in the model"
                )
            view.copy_(values)
            filled.add(names[tensor.name])
    return filled


def _view(model: nn.Module, tensor: str, name: str) -> torch.Tensor:
    """The part of a weight that a tensor is, in the file's order."""
    owner_name, _, leaf = name.rpartition(".")
    owner: Any = model.get_submodule(owner_name)
    whole: torch.Tensor = getattr(owner, leaf)
    found = EXPERTS.fullmatch(tensor)
    if found is None:
        return whole
    if getattr(owner, "is_transposed", False) and found[3] == "weight":
        whole = whole.transpose(1, 2)
    if found[2] not in ("gate", "up"):
        if found[2] == "gate_up" and not getattr(owner, "is_concatenated", True):
            raise ValueError(f"{tensor} has gate above up, the model has them in turn")
        return whole
    if not getattr(owner, "is_concatenated", True):
        return whole[:, found[2] == "up" :: 2]
    half = whole.shape[1] // 2
    return whole[:, :half] if found[2] == "gate" else whole[:, half:]
