"""Which models share forward calls: decided by what their tokens see, whatever is rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from real_models import GEMMA3, SMOLLM2, needs_models
from tiny_models import ARCHITECTURES, loaded_tiny

from stratakv.engine.load import LoadedModel, load_model
from stratakv.profile import resolve
from stratakv.serve.choose_runner import why_apart
from stratakv.serve.engine import Engine
from stratakv.serve.request import Limits

STATES = "layer 0: linear attention"
APART = {
    "deepseek_v3": "the model applies aten.linear",
    "falcon": "the model applies aten.scaled_dot_product_attention",
    "falcon_h1": "Cannot get conv state",
    "granitemoehybrid": STATES,
    "jamba": STATES,
    "lfm2": STATES,
    "qwen3_next": STATES,
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture(model_type: str) -> None:
    why = why_apart(loaded_tiny(model_type))
    if model_type in APART:
        assert why is not None and APART[model_type] in why
    else:
        assert why is None


class SeesItsNeighbour(torch.nn.Module):
    """A layer whose tokens also see a little of the token computed just before them, as a convolution without a state would."""

    def __init__(self, layer: Any, share: float) -> None:
        super().__init__()
        self.layer, self.share = layer, share

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.layer(hidden_states, *args, **kwargs)
        return out + self.share * hidden_states.roll(1, dims=1)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_model_that_mixes_neighbours_stays_apart(layer: int) -> None:
    tiny = loaded_tiny("llama")
    layers: Any = tiny.model.model.layers
    layers[layer] = SeesItsNeighbour(layers[layer], 0.1)
    assert why_apart(tiny) == "llama gives other logits when sequences share a call"


def test_a_model_that_counts_positions_itself_stays_apart() -> None:
    tiny = loaded_tiny("llama")
    rotary: Any = tiny.model.model.rotary_emb
    inner = rotary.forward
    rotary.forward = lambda x, position_ids: inner(x, torch.arange(x.shape[1])[None])
    assert why_apart(tiny) == "llama gives other logits when sequences share a call"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_share_calls_too(dtype: torch.dtype) -> None:
    tiny = loaded_tiny("llama")
    tiny.model.to(dtype)  # type: ignore[arg-type]
    assert why_apart(tiny) is None
    layers: Any = tiny.model.model.layers
    layers[0] = SeesItsNeighbour(layers[0], 0.5)
    assert why_apart(tiny) is not None


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


@pytest.mark.real
@needs_models
@pytest.mark.parametrize("real", [SMOLLM2, GEMMA3], ids=["smollm2", "gemma3"], indirect=True)
@pytest.mark.parametrize("profile", ["f32", "f16", "q8_0/turbo4", "turbo4", "turbo2"])
def test_real_models_lose_nothing(real: LoadedModel, profile: str) -> None:
    engine = Engine(real, resolve(profile, real.geometry), Limits(context=1024, cache_bytes=2**28))
    assert engine.lost == () and engine.scheduler.keep_prefixes
    assert engine.cache.runner.batching.startswith("one forward call for all")
