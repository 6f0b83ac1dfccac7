"""The transformers class behind a config, and whether it is a language model with K and V to store."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from stratakv.errors import UserError


def causal_class(config: PreTrainedConfig) -> Any:
    """The causal language model's class (the text part's, for multimodal configs); None where transformers has none."""
    for candidate in (config, config.get_text_config(decoder=True)):
        model = AutoModelForCausalLM._model_mapping.get(type(candidate), None)
        if model is not None:
            return model
    return None


def check_architecture(config: PreTrainedConfig, name: str) -> None:
    """Raise UserError for encoders, encoder-decoders, and models whose state isn't K and V per token."""
    model = causal_class(config)
    is_encoder = getattr(config, "is_decoder", True) is False and model is not None
    if is_encoder and model.__name__ in (config.architectures or [model.__name__]):
        is_encoder = False  # gpt_neox calls itself no decoder too
    if model is None or is_encoder or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is of type {config.model_type}, no causal language model of transformers: give one that continues text"
        )
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{name} is of type {config.model_type}, which has no K and V cache: there is nothing to store")
