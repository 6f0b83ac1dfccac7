"""Architectures for which transformers has renamings and conversions instead of a name map and a tensor processor (Qwen3.5).

`Conversions` gives both from them, so that the mapping asks one kind of thing.
"""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.weights.gguf_header import GGUFHeader


class Conversions:
    """A tensor processor for one file and model. names: of the model's weights, by tensor name, as `tensor_names`."""

    def __init__(self, header: GGUFHeader, model: Any) -> None:
        from transformers.core_model_loading import WeightRenaming, rename_source_key
        from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

        mapping = deepcopy(get_gguf_conversion_mapping(str(header.get("general.architecture")), model.config))
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters: list[Any] = [entry for entry in mapping if not isinstance(entry, WeightRenaming)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        there = model.state_dict()
        self.names: dict[str, str] = {}
        self._operations: dict[str, list[Any]] = {}
        for tensor in header.tensors:
            name, pattern = rename_source_key(tensor.name, renamings, converters)
            if name in there:
                self.names[tensor.name] = name
                self._operations[tensor.name] = list(getattr(by_pattern.get(pattern), "operations", ()))

    def process(self, weights: NDArray[Any], name: str, **_: Any) -> Any:
        """As transformers' processors: the values as the model wants them. KeyError for tensors that are none of its weights."""
        operations = self._operations[name]
        if not operations:
            return SimpleNamespace(weights=weights, name=name)
        values = torch.from_numpy(np.array(weights))
        for operation in operations:
            values = next(iter(operation.convert({name: values}, [name], [name]).values()))
        return SimpleNamespace(weights=values.numpy(), name=name)
