"""Decoder layers of Llama's kind in two compiled calls, around the model's own cache and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stratakv.kernels.native import native
from stratakv.weights.modules import PackedLinear, activation_number
from stratakv.weights.packed import Product

# Their layers differ in the norms of q and k and in biases alone; a trial run at load has the last word
_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
_TOLERANCE = 0.02


def fuse_layers(model: Any) -> int:
    """Let every decoder layer of a known kind run fused; returns how many do.

    The first layer is run both ways on a few random vectors; where the outcomes differ, all stay as they are.
    """
    layers = [module for module in model.modules() if type(module).__name__ in _LAYERS]
    fused = [made for layer in layers if (made := _fused(layer)) is not None]
    if not fused or not _agree(model, fused[0]):
        return 0
    for one in fused:
        one.layer.forward = one.forward
    return len(fused)


def _fused(layer: Any) -> FusedLayer | None:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    projections += [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(projection, PackedLinear) for projection in projections):
        return None
    if activation_number(mlp.act_fn) is None or attention.head_dim % 2:
        return None
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [norm for norm in (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)) if norm]
    if len({norm.variance_epsilon for norm in norms}) > 1:
        return None
    return FusedLayer(layer)


class FusedLayer:
    """One decoder layer. Its `forward` takes the place of the module's."""

    def __init__(self, layer: Any) -> None:
        module: Any = native()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.attention, self.original = layer, attention, layer.forward
        self.dim = attention.head_dim
        self.qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = _joined(mlp.gate_proj, mlp.up_proj)
        self.output, self.down = attention.o_proj.product, mlp.down_proj.product
        self.q_heads, self.kv_heads = (p.out_features // self.dim for p in (attention.q_proj, attention.k_proj))
        self.epsilon = layer.input_layernorm.variance_epsilon
        self.activation = activation_number(mlp.act_fn)
        self.norms = [
            norm.weight.detach().float().contiguous() if norm is not None else torch.empty(0)
            for norm in (
                layer.input_layernorm,
                layer.post_attention_layernorm,
                getattr(attention, "q_norm", None),
                getattr(attention, "k_norm", None),
            )
        ]
        self.compiled = module.PackedLayer(
            self.qkv.group,
            self.output.group,
            self.gate_up.group,
            self.down.group,
            *(norm.tolist() for norm in self.norms),
            self.epsilon,
            self.q_heads,
            self.kv_heads,
            self.dim,
            self.activation,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the decoder layer's: hidden_states [batch, tokens, width]."""
        usual = position_embeddings is not None and not kwargs.get("output_attentions")
        usual = usual and hidden_states.dtype == torch.float32 and position_embeddings[0].shape[-1] == self.dim  # type: ignore[index]
        if not usual or (torch.is_grad_enabled() and hidden_states.requires_grad):
            out: torch.Tensor = self.original(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            return out
        module = self.attention
        x = hidden_states.contiguous()
        q, k, v = self._enter(x, *(part.contiguous() for part in position_embeddings))  # type: ignore[union-attr]
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, module.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, _eager(module))
        attended, _ = attend(
            module,
            q,
            k,
            v,
            attention_mask,
            dropout=0.0,
            scaling=module.scaling,
            sliding_window=getattr(module, "sliding_window", None),
            position_ids=position_ids,
            **kwargs,
        )
        return self._leave(attended.reshape(*x.shape[:-1], -1).contiguous(), x)

    def _enter(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, tokens, _ = x.shape
        q = torch.empty(batch, self.q_heads, tokens, self.dim)
        k = torch.empty(batch, self.kv_heads, tokens, self.dim)
        v = torch.empty(batch, self.kv_heads, tokens, self.dim)
        angles = cos.data_ptr(), sin.data_ptr(), len(cos)
        heads = q.data_ptr(), k.data_ptr(), v.data_ptr(), torch.get_num_threads()
        self.compiled.enter(x.data_ptr(), batch, tokens, *angles, *heads)
        return q, k, v

    def _leave(self, attended: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        rows = x.shape[0] * x.shape[1]
        self.compiled.leave(attended.data_ptr(), x.data_ptr(), rows, out.data_ptr(), torch.get_num_threads())
        return out


def _joined(*linears: Any) -> Product:
    return Product([linear.tensor for linear in linears], [linear.bias for linear in linears])


def _eager(module: nn.Module) -> Any:
    import sys

    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _agree(model: Any, fused: FusedLayer) -> bool:
    """Whether the layer gives the same both ways, for few tokens and for many, without a cache."""
    rotary = next((m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
    if rotary is None:
        return False
    generator = torch.Generator().manual_seed(0)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for tokens in (3, 70):
            x = torch.randn(1, tokens, fused.qkv.columns, generator=generator)
            with torch.inference_mode():
                positions = torch.arange(tokens)[None]
                angles = rotary(x, positions)
                arguments = {"position_embeddings": angles, "position_ids": positions}
                expected, found = fused.original(x, **arguments), fused.forward(x, **arguments)
            if float((expected - found).norm()) > _TOLERANCE * float((expected - x).norm() + 1e-6):
                return False
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    finally:
        model.set_attn_implementation(before)
    return True
