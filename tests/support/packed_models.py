"""Models whose linear layers lie as F32 rows in a file: packed as a GGUF file's are, and exact to the last bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType
from torch import nn

from stratakv import KVCache
from stratakv.weights.mapped_file import MappedFile
from stratakv.weights.modules import PackedLinear
from stratakv.weights.packed import PackedTensor


def lossless(config: Any) -> KVCache:
    """A cache that stores what it is given."""
    return KVCache(config, "f32")


def pack(model: Any, path: Path) -> Any:
    """Put all linear layers of a float32 model into the file and let ggml's rows multiply them; returns the model."""
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    offsets: dict[str, int] = {}
    with path.open("wb") as file:
        file.write(b"head" * 8)
        for name, linear in linears.items():
            offsets[name] = file.tell()
            file.write(linear.weight.detach().contiguous().numpy().tobytes())
    mapped = MappedFile(path)
    for name, linear in linears.items():
        shape = tuple(linear.weight.shape)
        tensor = PackedTensor(mapped, name, GGMLQuantizationType.F32, shape, offsets[name], linear.weight.nbytes)
        bias = None if linear.bias is None else linear.bias.detach()
        model.set_submodule(name, PackedLinear(tensor, bias))
    return model
