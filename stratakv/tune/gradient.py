"""Damage of every layer, side and type at once from gradients: one forward pass, a backward pass a draw of labels.

To second order the KL divergence that small errors of K and V cause is half their square under the Fisher information
(Martens 2020, "New insights and perspectives on the natural gradient method"). With labels drawn from the model's own
predictions, g the gradient of their log-likelihood with respect to a stored vector, and e the vector's actual quantization
error, E[(g . e)^2] is the share of that vector; errors of different vectors are taken as independent. g and e are of K
after RoPE, and the product doesn't depend on the basis that the type stores in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from stratakv.engine.load import LoadedModel
from stratakv.kernels.encode import encode
from stratakv.kvtypes import KVType, kv_type
from stratakv.measure.divergence import Floats

BACKWARD_PASSES = 2  # a backward pass costs about two forward passes


def gradient_damage(loaded: LoadedModel, ids: torch.Tensor, types: Sequence[str], draws: int, seed: int) -> Floats:
    """Predicted KLD in nats a scored prediction when one layer's K or V alone is stored as a type, all else exact.

    ids: int64 [context], of which predictions at context // 2 to context - 2 are scored. draws: of labels, a backward pass
    each. Returns float64 [kv_layers, 2 (K, V), types].
    """
    model: Any = loaded.model
    geometry = loaded.geometry.kv_layers
    states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    cache = DynamicCache(config=model.config)
    for layer in geometry:
        _trace(cache.layers[layer.layer], layer.layer, states)
    first = len(ids) // 2
    generator = torch.Generator().manual_seed(seed)
    with _frozen(model), torch.enable_grad():
        logits = model(input_ids=ids[None].to(model.device), past_key_values=cache, use_cache=True).logits[0, first:-1]
        log_p = logits.float().log_softmax(-1)
        leaves = [states[layer.layer][side] for layer in geometry for side in (0, 1)]
        gradients = []
        for draw in range(draws):
            labels = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(log_p.device)
            total = log_p.gather(-1, labels).sum()
            gradients.append(torch.autograd.grad(total, leaves, retain_graph=draw + 1 < draws))
    damage = np.empty((len(geometry), 2, len(types)))
    with torch.no_grad():
        for index, layer in enumerate(geometry):
            for side in (0, 1):
                x = states[layer.layer][side].detach().float()
                g = torch.stack([each[2 * index + side].float() for each in gradients])
                for column, name in enumerate(types):
                    error = _error(kv_type(name), x)
                    damage[index, side, column] = float((g * error).sum(-1).double().square().sum())
    predicted: Floats = damage / (2 * draws * log_p.shape[0])
    return predicted


def _error(type_: KVType, x: torch.Tensor) -> torch.Tensor:
    return type_.decode(encode(type_, x), x.shape[-1]) - x


def _trace(layer: Any, index: int, states: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Let a cache layer keep the states that it is given, as points where gradients can be asked for."""
    update = layer.update

    def traced(key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        kept = []
        for x in (key_states, value_states):
            kept.append(x if x.requires_grad else x.detach().requires_grad_())
        states[index] = kept[0], kept[1]
        return update(*kept, *args, **kwargs)

    layer.update = traced


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Within, no weight gets a gradient; the states of every layer do, since the embeddings are made leaves."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # fused layers compute no gradients and give way to the layers that do where their input wants one: so the first one's does
    hook = model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.detach().requires_grad_().clone())
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        hook.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
