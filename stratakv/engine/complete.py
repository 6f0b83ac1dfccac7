"""Files and models that fit to the last tensor: what is missing, and what nothing uses, is an error with its names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from stratakv.engine.describe import ModelDescription
from stratakv.engine.gguf_file import GGUFModel
from stratakv.errors import UserError
from stratakv.weights.fill import fill
from stratakv.weights.hand_over import handed_over
from stratakv.weights.names import (
    converted_by_transformers,
    drop_absent_biases,
    idle,
    missing_of_experts,
    some,
    tensor_names,
    transformers_names,
    used_by_rope,
)


def check_experts(description: ModelDescription) -> None:
    """UserError where a GGUF file has a part of a layer's experts only."""
    if description.gguf and (lacking := missing_of_experts(description.gguf.header)):
        raise _not_whole(description, [f"{len(lacking):,} tensors of experts are missing ({some(lacking)})"])


def check_complete(description: ModelDescription, found: Mapping[str, Any]) -> None:
    """UserError naming weights that transformers has set at random, since the files lack them or hold another shape.

    found: transformers' loading info. Tied weights are none of these.
    """
    other = [
        f"{name} is {_shape(there)}, not {_shape(needed)}" for name, there, needed in sorted(found["mismatched_keys"])
    ]
    missing = sorted(set(found["missing_keys"]) - {name for name, *_ in found["mismatched_keys"]})
    faults = [f"{len(missing):,} weights are missing ({some(missing)})"] if missing else []
    faults += [f"{len(other):,} weights are of another shape than the model's ({some(other)})"] if other else []
    if faults:
        raise _not_whole(description, faults)


def check_used(description: ModelDescription, unused: Sequence[str]) -> list[str]:
    """UserError where a file has tensors that nothing uses and that llama.cpp would compute with; a line about those that are
    left out without harm."""
    harmless = idle(unused, description.config.get_text_config(decoder=True))
    if wrong := [name for name in unused if name not in harmless]:
        raise UserError(
            f"{description.path} has {len(wrong):,} tensors that transformers' {description.config.model_type} has no place for "
            f"({some(wrong)}): without them its answers would be wrong; take another file of the model"
        )
    return [f"{len(harmless):,} tensors are left out, no answer needs them: {some(harmless)}"] if harmless else []


def unused_when_unpacked(gguf: GGUFModel, model: Any, found: dict[str, Any]) -> list[str]:
    """Tensors of a file that a model which transformers has unpacked is not made of, after what it passes over is put in.

    found: transformers' loading info; what is put in, and optional biases that the file lacks, leave its missing keys. UserError
    for what is of another shape.
    """
    header = gguf.header
    if gguf.architecture == "llama":
        found["missing_keys"] = set(found["missing_keys"]) - drop_absent_biases(header, model)
    if converted_by_transformers(gguf.architecture):
        return sorted(found["unexpected_keys"])
    loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    processor = loader.TENSOR_PROCESSORS.get(gguf.architecture, loader.TensorProcessor)(config=model.config.to_dict())
    with handed_over(header):
        theirs, names = transformers_names(model, processor), tensor_names(header, model, processor)
    stacked = re.compile(getattr(processor, "GGUF_MOE_WEIGHTS_PATTERN", "(?!)"))  # gate and up, which it puts together
    passed_over = [x.name for x in header.tensors if x.name not in theirs and not stacked.fullmatch(x.name)]
    try:
        filled = fill(model, header, names, {name for name in passed_over if name in names})
    except ValueError as error:
        raise UserError(
            f"{header.paths[0]} can't be unpacked: {error}; it can be used with its weights packed"
        ) from error
    found["missing_keys"] = set(found["missing_keys"]) - filled
    return [name for name in passed_over if name not in names and not used_by_rope(header, model, name)]


def _not_whole(description: ModelDescription, faults: list[str]) -> UserError:
    return UserError(f"{description.path} is not whole: {', '.join(faults)}; download or convert it again")


def _shape(size: Any) -> str:
    return " x ".join(map(str, size))
