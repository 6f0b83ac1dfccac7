"""The transformers class behind a config, and whether it is a language model with K and V to store.

Both are read from the source of the class: importing it takes seconds, and a description needs no more than this.
"""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from stratakv.errors import UserError


@dataclass(frozen=True)
class CausalClass:
    """A causal language model's class. arguments: of its forward; source: of its module."""

    name: str
    arguments: frozenset[str]
    source: str


def causal_class(config: PreTrainedConfig) -> CausalClass | None:
    """The causal language model's class (the text part's, for multimodal configs); None where transformers has none."""
    for candidate in (config, config.get_text_config(decoder=True)):
        found = _from_source(type(candidate).__name__) or _imported(type(candidate))
        if found is not None:
            return found
    return None


def calls_attention_by_name(config: PreTrainedConfig) -> bool:
    """Whether the architecture's module calls the attention implementation by name, as nearly all do; ours then reads pages."""
    model = causal_class(config)
    return model is None or "ALL_ATTENTION_FUNCTIONS" in model.source


@lru_cache(maxsize=8)
def _from_source(config_class: str) -> CausalClass | None:
    """What the source says, None where it doesn't say it plainly."""
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    model_type = mapping._reverse_config_mapping.get(config_class)
    name = mapping._model_mapping.get(model_type)
    spec = find_spec(f"transformers.models.{model_type_to_module_name(model_type)}") if isinstance(name, str) else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("modeling_*.py")):
            source = file.read_text(encoding="utf-8")
            if f"class {name}(" not in source:
                continue
            arguments = _forward_arguments(ast.parse(source), name)
            return None if arguments is None else CausalClass(name, arguments, source)
    return None


def _forward_arguments(module: ast.Module, name: str) -> frozenset[str] | None:
    """Names of a class's forward, its own or that of a class above it in the same module."""
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    waiting = [name]
    while waiting:
        found = classes.get(waiting.pop(0))
        if found is None:
            continue
        for node in found.body:
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                return frozenset(argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
        waiting += [base.id for base in found.bases if isinstance(base, ast.Name)]
    return None


def _imported(config: type) -> CausalClass | None:
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(config, None)
    if model is None:
        return None
    arguments = frozenset(inspect.signature(model.forward).parameters)
    return CausalClass(model.__name__, arguments, inspect.getsource(sys.modules[model.__module__]))


def check_architecture(config: PreTrainedConfig, name: str) -> None:
    """Raise UserError for encoders, encoder-decoders, and models whose state isn't K and V per token."""
    model = causal_class(config)
    is_encoder = getattr(config, "is_decoder", True) is False and model is not None
    if is_encoder and model is not None and model.name in (config.architectures or [model.name]):
        is_encoder = False  # gpt_neox calls itself no decoder too
    if model is None or is_encoder or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is of type {config.model_type}, no causal language model of transformers: give one that continues text"
        )
    if "past_key_values" not in model.arguments:
        raise UserError(f"{name} is of type {config.model_type}, which has no K and V cache: there is nothing to store")
