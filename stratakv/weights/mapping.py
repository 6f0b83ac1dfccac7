"""Which tensor of a GGUF file is which weight of a transformers model, and which can stay as it lies in the file.

Names and changes are transformers' own: its name map, and its tensor processors, which are asked what they do to a matrix of
known rows instead of being rewritten here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from stratakv.weights.conversions import Conversions
from stratakv.weights.gguf_header import GGUFHeader
from stratakv.weights.hand_over import handed_over
from stratakv.weights.mapped_file import MappedFile
from stratakv.weights.modules import embedding_scale, gating_of
from stratakv.weights.names import converted_by_transformers, tensor_names
from stratakv.weights.packed import PackedTensor

_EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|up|gate_up|down)_exps\.(weight|bias)")
_FLOATS = ("F32", "F16", "BF16")


@dataclass
class TensorMapping:
    """packed: by parameter name. plain: unpacked weights. experts, biases: by the module's name, then by gate, up, gate_up, down.

    unpacked: (tensor, why) of matrices that lie in blocks and can't stay so. unused: tensors that no weight is made of.
    """

    packed: dict[str, PackedTensor] = field(default_factory=dict)
    plain: dict[str, torch.Tensor] = field(default_factory=dict)
    experts: dict[str, dict[str, PackedTensor]] = field(default_factory=dict)
    biases: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    columns: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unpacked: list[tuple[str, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def map_tensors(
    files: Mapping[Path, MappedFile],
    header: GGUFHeader,
    model: nn.Module,
    multiplies: Callable[[GGMLQuantizationType], str | None],
) -> TensorMapping:
    """Sort a file's tensors for a model whose parameters may be on the meta device.

    files: of the header's paths, mapped. multiplies: why rows of a type can't be multiplied, None where they can. Small
    tensors and what can't stay packed are unpacked one by one.
    """
    names, processor = _names(header, model)
    parsed: dict[str, Any] = {"tensors": {}}
    arguments = {"tensor_key_mapping": names, "parsed_parameters": parsed}
    layouts = _Layouts(processor, arguments)
    mapping = TensorMapping()
    for tensor in header.tensors:
        target = names.get(tensor.name)
        shape = tuple(reversed(tensor.shape))
        packed = PackedTensor(
            files[tensor.path], tensor.name, tensor.tensor_type, shape, tensor.data_offset, tensor.n_bytes
        )
        expert = _EXPERTS.fullmatch(tensor.name)
        if expert and target and expert[2] == "bias":
            bias = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            mapping.biases.setdefault(target.rpartition(".")[0], {})[expert[1]] = bias
            continue
        why = _keep(mapping, packed, target, model, layouts, multiplies) if target or len(shape) > 1 else "small"
        if why is None:
            continue
        if len(shape) > 1 and tensor.tensor_type.name not in _FLOATS and target:
            mapping.unpacked.append((tensor.name, why))
        if expert and target and getattr(model.get_submodule(target.rpartition(".")[0]), "is_transposed", False):
            raise NotImplementedError(f"{tensor.name} has to stay packed: {why}")
        if target is None:
            mapping.unused.append(tensor.name)
            continue
        values = dequantize(tensor.data, tensor.tensor_type)
        result = processor.process(weights=values, name=tensor.name, **arguments)
        if result.name in names:
            mapping.plain[names[result.name]] = torch.from_numpy(np.array(result.weights))
    mapping.plain.update(parsed["tensors"])
    return mapping


def _names(header: GGUFHeader, model: nn.Module) -> tuple[dict[str, str], Any]:
    """Weights by tensor name, and what puts their values right."""
    loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    architecture = str(header.get("general.architecture"))
    if converted_by_transformers(architecture) and architecture not in loader.GGUF_SUPPORTED_ARCHITECTURES:
        conversions = Conversions(header, model)
        return conversions.names, conversions
    with handed_over(header):
        parsed = loader.load_gguf_checkpoint(str(header.paths[0]), return_tensors=False)
        processor = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)(config=parsed["config"])
        return tensor_names(header, model, processor), processor


def _keep(
    mapping: TensorMapping,
    packed: PackedTensor,
    target: str | None,
    model: nn.Module,
    layouts: _Layouts,
    multiplies: Callable[[GGMLQuantizationType], str | None],
) -> str | None:
    """Put the tensor among the packed ones; or why that can't be."""
    if target is None:
        return "no weight of the model"
    if len(packed.shape) < 2:
        return "small"
    if why := multiplies(packed.type):
        return why
    owner_name, _, leaf = target.rpartition(".")
    owner: Any = model.get_submodule(owner_name)
    if expert := _EXPERTS.fullmatch(packed.name):
        if gating_of(owner) is None or len(packed.shape) != 3:
            return f"{type(owner).__name__} has experts of another kind"
        mapping.experts.setdefault(owner_name, {})[expert[1]] = packed
        return None
    if leaf != "weight" or len(packed.shape) != 2 or not is_matrix(owner):
        return f"{type(owner).__name__} reads its weight itself"
    layout = layouts.of(packed)
    if layout is None or (layout.transposed != isinstance(owner, Conv1D)):
        return "transformers needs it in another order"
    if isinstance(owner, nn.Embedding) and (layout.place is not None or layout.columns is not None):
        return "transformers needs it in another order"
    rows, columns = packed.shape
    expected = (owner.nx, owner.nf) if isinstance(owner, Conv1D) else tuple(reversed(owner.weight.shape))
    if (columns, rows) != expected:
        return f"{rows} x {columns} in the file, {expected[1]} x {expected[0]} in the model"
    mapping.packed[target] = PackedTensor(**{**packed.__dict__, "place": layout.place})
    if layout.columns is not None:
        mapping.columns[target] = layout.columns
    return None


def is_matrix(module: nn.Module) -> bool:
    """Whether the module is x times a matrix plus a bias, or picks rows of it times a number, and nothing else."""
    if isinstance(module, nn.Embedding):
        return embedding_scale(module) is not None
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return plain or isinstance(module, Conv1D) or type(module).__name__ == "FalconLinear"


@dataclass(frozen=True)
class _Layout:
    """place: where each stored row goes; columns: which value of an input each stored column takes. None: in order."""

    place: tuple[int, ...] | None
    transposed: bool = False
    columns: tuple[int, ...] | None = None


class _Layouts:
    """What transformers' processor does to the rows of each kind of matrix; blocks of a model are alike."""

    def __init__(self, processor: Any, arguments: dict[str, Any]) -> None:
        self.processor, self.arguments = processor, arguments
        self.known: dict[tuple[str, tuple[int, ...]], _Layout | None] = {}

    def of(self, tensor: PackedTensor) -> _Layout | None:
        """The layout, None where more than whole rows move, or values change."""
        key = (re.sub(r"\d+", "#", tensor.name), tensor.shape)
        if key not in self.known:
            rows, columns = tensor.shape
            # number of the row everywhere, without the memory of a matrix
            numbers = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], (rows, columns))
            moved = self._moved(tensor, numbers)
            layout = row_layout(moved, rows, columns)
            if layout is not None and not layout.transposed and moved is not numbers:
                numbers = np.broadcast_to(np.arange(columns, dtype=np.float32), (rows, columns))
                layout = with_columns(layout, self._moved(tensor, numbers))
            self.known[key] = layout
        return self.known[key]

    def _moved(self, tensor: PackedTensor, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        before = dict(self.arguments["parsed_parameters"]["tensors"])
        result = self.processor.process(weights=numbers, name=tensor.name, **self.arguments)
        self.arguments["parsed_parameters"]["tensors"] = before
        moved: NDArray[np.float32] = numbers if result.name is None else result.weights
        return moved


def with_columns(layout: _Layout, moved: NDArray[np.float32]) -> _Layout | None:
    """The layout with the order of columns. moved: what became of a matrix that held each column's number."""
    source = moved[0].astype(np.int64)
    in_order = np.arange(len(source))
    if not all(np.array_equal(moved[row], source) for row in (len(moved) // 2, -1)):
        return None
    if np.array_equal(source, in_order):
        return layout
    if not np.array_equal(np.sort(source), in_order):
        return None
    return _Layout(layout.place, columns=tuple(np.argsort(source).tolist()))


def row_layout(moved: NDArray[np.float32], rows: int, columns: int) -> _Layout | None:
    """What became of a matrix [rows, columns] that held each row's number: rows in another order, or transposed, or None."""
    in_order = np.arange(rows)
    if moved.shape == (columns, rows) and all(np.array_equal(moved[i], in_order) for i in (0, -1)):
        return _Layout(None, transposed=True)
    if moved.shape != (rows, columns):
        return None
    source = moved[:, 0].astype(np.int64)
    same = all(np.array_equal(moved[:, column], source) for column in (columns // 2, columns - 1))
    if not same or not np.array_equal(np.sort(source), in_order):
        return None
    if np.array_equal(source, in_order):
        return _Layout(None)
    place = np.empty(rows, dtype=np.int64)
    place[source] = in_order
    return _Layout(tuple(place.tolist()))
