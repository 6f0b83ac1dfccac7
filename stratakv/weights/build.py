"""A transformers model over a GGUF file: built without weights, then given the file's blocks and its few plain tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from stratakv.weights import ggml
from stratakv.weights.fuse import LosslessCache, fuse_layers
from stratakv.weights.gguf_split import read_gguf_header
from stratakv.weights.mapped_file import MappedFile
from stratakv.weights.mapping import TensorMapping, map_tensors
from stratakv.weights.modules import PackedEmbedding, PackedExperts, PackedLinear, embedding_scale, gating_of
from stratakv.weights.names import drop_absent_biases, used_by_rope
from stratakv.weights.packed import PackedTensor


class CannotStayPackedError(Exception):
    """The file as a whole can't be used packed; the text says why."""


@dataclass(frozen=True)
class PackedWeights:
    """What of a file stays in its blocks. types: number of tensors by type. unpacked: (tensor, why) of matrices that don't.

    fused: decoder layers that run in two compiled calls. unused: tensors that nothing in the model is made of.
    """

    files: tuple[MappedFile, ...]
    packed_bytes: int
    plain_bytes: int
    types: dict[str, int]
    unpacked: tuple[tuple[str, str], ...]
    fused: int
    unused: tuple[str, ...] = ()

    def line(self) -> str:
        """The same in one line."""
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        return (
            f"weights stay in the file's blocks, mapped: {self.packed_bytes / 2**20:,.0f} MiB ({types}); "
            f"unpacked: {self.plain_bytes / 2**20:,.1f} MiB; ggml's kernels are {ggml.running()}'s"
        )


def build_packed(
    path: Path, config: PreTrainedConfig, dtype: torch.dtype, lossless: LosslessCache, *, exact: bool = False
) -> tuple[Any, PackedWeights]:
    """The model in evaluation mode. lossless: as for `fuse_layers`. exact: as for `Product`, and nothing is fused.

    Raises CannotStayPackedError where it has to be loaded unpacked instead.
    """
    header = read_gguf_header(path)
    files = {part: MappedFile(part) for part in header.paths}
    model = _without_weights(config, dtype)
    if header.get("general.architecture") == "llama":
        drop_absent_biases(header, model)
    try:
        mapping = map_tensors(files, header, model, ggml.multiplies)
    except (NotImplementedError, KeyError, AttributeError, ValueError) as error:
        raise CannotStayPackedError(f"transformers' names can't be followed ({error})") from error
    tensors = list(_put_packed(model, mapping, dtype, exact))
    plain = _put_plain(model, mapping, dtype)
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    stored = model.state_dict().keys() - {name for name, _ in model.named_parameters()}
    missing += sorted(stored - mapping.plain.keys())  # buffers that a file has to bring
    if missing:
        raise CannotStayPackedError(f"the file has nothing for {missing[0]}")
    model.eval()
    unused = [name for name in mapping.unused if not used_by_rope(header, model, name)]
    fused = fuse_layers(model, lossless) if dtype == torch.float32 and not exact else 0
    _check_at_each_step(model, tuple(files.values()))
    types = Counter(tensor.type.name for tensor in tensors)
    return model, PackedWeights(
        tuple(files.values()),
        sum(tensor.nbytes for tensor in tensors),
        plain,
        dict(types.most_common()),
        tuple(mapping.unpacked),
        fused,
        tuple(unused),
    )


def _without_weights(config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """Parameters on the meta device; buffers (RoPE's frequencies) as ever."""
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    with no_init_weights(), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _put_packed(model: Any, mapping: TensorMapping, dtype: torch.dtype, exact: bool) -> Any:
    """Replace modules; gives the tensors that are in use."""
    for name, found in mapping.experts.items():
        model.set_submodule(
            name, _experts(model.get_submodule(name), name, found, mapping.biases.pop(name, None), exact)
        )
        yield from found.values()
    if mapping.biases:
        raise CannotStayPackedError(f"the experts of {next(iter(mapping.biases))} can't stay packed, and have biases")
    for name, tensor in mapping.packed.items():
        owner_name = name.rpartition(".")[0]
        owner = model.get_submodule(owner_name)
        made = _module(owner, tensor, mapping.plain.get(f"{owner_name}.bias"), dtype, exact)
        if name in mapping.columns and isinstance(made, PackedLinear):
            made.order = torch.tensor(mapping.columns[name])
        model.set_submodule(owner_name, made)
        yield tensor
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = isinstance(head, nn.Linear) and head.weight.is_meta and isinstance(embedding, PackedEmbedding)
    if tied and model.config.get_text_config(decoder=True).tie_word_embeddings:
        model.set_output_embeddings(PackedLinear(embedding.tensor, None, exact=exact))


def _experts(
    owner: nn.Module,
    name: str,
    tensors: dict[str, PackedTensor],
    biases: dict[str, torch.Tensor] | None,
    exact: bool,
) -> PackedExperts:
    """The module instead of transformers'; each of the file's ways to write gate and up, with all biases or none."""
    gating = gating_of(owner)
    assert gating is not None
    ways = [kinds for kinds in (("gate", "up"), ("gate_up",)) if {*kinds, "down"} == tensors.keys()]
    wanted = hasattr(owner, "down_proj_bias")
    if not ways or (tensors.keys() if wanted else None) != (biases and biases.keys()):
        raise CannotStayPackedError(f"the file has not all of gate, up and down of {name}")
    experts, width, inner = tensors["down"].shape
    rows = {"gate": inner, "up": inner, "gate_up": 2 * inner}
    if any(tensors[kind].shape != (experts, rows[kind], width) for kind in ways[0]) or not _fits(
        owner, tensors["down"]
    ):
        raise CannotStayPackedError(f"{name} has another shape in the file")
    both = None
    if biases is not None:
        both = torch.cat([biases[kind] for kind in ways[0]], -1), biases["down"]
        if both[0].shape != (experts, 2 * inner) or both[1].shape != (experts, width):
            raise CannotStayPackedError(f"the biases of {name} have another shape in the file")
    return PackedExperts(tuple(tensors[kind] for kind in ways[0]), tensors["down"], gating, both, exact=exact)


def _fits(owner: Any, down: PackedTensor) -> bool:
    experts, *sizes = owner.down_proj.shape
    return down.shape == (experts, *(reversed(sizes) if getattr(owner, "is_transposed", False) else sizes))


def _module(owner: nn.Module, tensor: Any, bias: torch.Tensor | None, dtype: torch.dtype, exact: bool) -> nn.Module:
    if isinstance(owner, nn.Embedding):
        return PackedEmbedding(tensor, dtype, embedding_scale(owner) or 1.0)
    wants_bias = getattr(owner, "bias", None) is not None
    if wants_bias and bias is None:
        raise CannotStayPackedError(f"the file has no bias for {tensor.name}")
    assert isinstance(owner, nn.Linear | Conv1D)
    return PackedLinear(tensor, bias if wants_bias else None, exact=exact)


def _put_plain(model: Any, mapping: TensorMapping, dtype: torch.dtype) -> int:
    """Give the remaining parameters their unpacked tensors; returns their bytes."""
    total = 0
    for name, values in mapping.plain.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if isinstance(owner, PackedLinear | PackedEmbedding | PackedExperts):
            continue
        kept = values.to(dtype)
        if leaf in owner._parameters:
            if tuple(owner._parameters[leaf].shape) != tuple(kept.shape):
                raise CannotStayPackedError(f"{name} has another shape in the file")
            owner._parameters[leaf] = nn.Parameter(kept)
        elif leaf in owner._buffers:
            owner._buffers[leaf] = kept
        total += kept.nbytes
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, nn.Linear) and head.weight.is_meta and isinstance(embedding, nn.Embedding):
        head.weight = embedding.weight
    return total


def _check_at_each_step(model: nn.Module, files: tuple[MappedFile, ...]) -> None:
    """Before a step the files must be what was mapped, and after it too: what was read in between is right then."""

    def check(*_: Any) -> None:
        for file in files:
            file.check()

    model.register_forward_pre_hook(check)
    model.register_forward_hook(check)
