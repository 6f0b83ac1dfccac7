"""What a reference model is made of and how long it is trained: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig


@dataclass(frozen=True)
class Phase:
    """`steps` optimizer steps of `batch` windows of `tokens` tokens each."""

    steps: int
    batch: int
    tokens: int


@dataclass(frozen=True)
class Recipe:
    """A model's shape and its training. The learning rates are constant after the warm-up, then fall to 0."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    phases: tuple[Phase, ...]
    family: Literal["llama", "gemma3"] = "llama"
    window: int = 0  # tokens that every other layer of a gemma3 sees, beginning with the first
    warmup: int = 60
    decay: int = 300  # last steps, over which the rates fall linearly to 0
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.05
    adamw_lr: float = 3e-3
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    gradient_norm: float = 1.0
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> Phase:
        """The phase that `step` (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise ValueError(f"step is beyond the recipe's {self.steps} steps")

    def rate(self, step: int) -> float:
        """The factor on both learning rates at `step` (from 0): linear warm-up, 1, linear to 0 after the last step."""
        return min((step + 1) / max(self.warmup, 1), 1.0, (self.steps - step) / max(self.decay, 1))

    def config(self) -> PretrainedConfig:
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        shape: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        if self.family == "llama":
            return LlamaConfig(**shape, rms_norm_eps=1e-5, rope_parameters=rope)
        kinds = ["sliding_attention", "full_attention"]
        return Gemma3TextConfig(
            **shape,
            pad_token_id=None,  # the default 0 is BOS here, and a padding row of the embedding is never trained
            query_pre_attn_scalar=self.head_dim,
            sliding_window=self.window,
            layer_types=[kinds[layer % 2] for layer in range(self.layers)],
            rope_parameters=dict.fromkeys(kinds, rope),
        )


_SMALL = Recipe(
    layers=12,
    hidden=128,
    mlp=384,
    heads=2,
    kv_heads=2,
    head_dim=64,
    vocabulary=4096,
    context=2048,
    phases=(),
    decay=160,
)

RECIPES = {
    "strata-8m": Recipe(
        layers=12,
        hidden=192,
        mlp=512,
        heads=4,
        kv_heads=2,
        head_dim=128,
        vocabulary=4096,
        context=4096,
        phases=(Phase(1200, 8, 512), Phase(300, 2, 2048)),
    ),
    # A proposal that nobody has run yet: 33 M parameters, about 5 passes over 10 M tokens. It wants a GPU.
    "strata-33m": Recipe(
        layers=16,
        hidden=384,
        mlp=1024,
        heads=6,
        kv_heads=2,
        head_dim=128,
        vocabulary=4096,
        context=4096,
        phases=(Phase(1200, 32, 1024), Phase(300, 8, 4096)),
    ),
    # Two small ones of other kinds: every other layer with a sliding window, and as many kv heads as query heads. They
    # were trained in what other work left of two cores, which is all that decided how long.
    "strata-slide-3m": replace(
        _SMALL, family="gemma3", window=128, kv_heads=1, head_dim=128, phases=(Phase(720, 4, 512), Phase(40, 1, 2048))
    ),
    "strata-mha-3m": replace(_SMALL, phases=(Phase(920, 4, 512), Phase(40, 1, 2048))),
}
