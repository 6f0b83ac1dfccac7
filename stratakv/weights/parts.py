"""The compiled parts of a decoder layer, read from the modules of transformers' layer: norms, heads, RoPE, residuals, MLP.

What a module does is asked by running a small input through it where its name can't tell (norms); where anything is unknown,
UnknownPartError says so and the layer stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stratakv.kernels.native import native
from stratakv.weights.modules import PackedLinear, activation_number
from stratakv.weights.packed import Product


class UnknownPartError(Exception):
    """A layer has something that no compiled part does."""


@dataclass(frozen=True)
class LayerParts:
    """compiled: the module's PackedLayer. attention: the part with its heads. mlp: what runs after it in Python, None where
    the compiled layer holds it. tail: what comes last. shares: K and V of which kind of layer it attends to instead of its own;
    stores: for which kind its own are kept. kind: equal for layers that are alike."""

    compiled: Any
    q_heads: int
    kv_heads: int
    dim: int
    rotates: bool
    mlp: PythonMlp | DenseAndExperts | None
    tail: LayerTail | None
    shares: str | None
    stores: str | None
    kind: tuple[Any, ...]


@dataclass(frozen=True)
class PythonMlp:
    """An MLP that stays transformers' own (experts), between its compiled neighbours: x + residual * after(mlp(before(x)))."""

    before: nn.Module
    mlp: nn.Module
    after: nn.Module
    residual: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, width]."""
        out = self.mlp(self.before(x))
        out = self.after(out[0] if isinstance(out, tuple) else out)
        result: torch.Tensor = x + (out if self.residual == 1.0 else out * self.residual)
        return result


@dataclass(frozen=True)
class DenseAndExperts:
    """Gemma 4's MLP beside its experts, each with norms of its own: x + after(first(mlp(before(x))) + second(experts(x)))."""

    layer: Any

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, width]."""
        layer, rows = self.layer, x.reshape(-1, x.shape[-1])
        dense = layer.post_feedforward_layernorm_1(layer.mlp(layer.pre_feedforward_layernorm(x)))
        _, weights, index = layer.router(rows)
        chosen = layer.experts(layer.pre_feedforward_layernorm_2(rows), index, weights).reshape(x.shape)
        result: torch.Tensor = x + layer.post_feedforward_layernorm(dense + layer.post_feedforward_layernorm_2(chosen))
        return result


@dataclass(frozen=True)
class LayerTail:
    """Gemma 4's end of a layer: what the token itself adds at this layer, and the layer's scale."""

    layer: Any

    def __call__(self, x: torch.Tensor, per_layer_input: torch.Tensor | None) -> torch.Tensor:
        """x: [batch, tokens, width]; per_layer_input: [batch, tokens, its own width], None for models without."""
        layer = self.layer
        if per_layer_input is not None:
            inner = layer.act_fn(layer.per_layer_input_gate(x)) * per_layer_input
            x = x + layer.post_per_layer_input_norm(layer.per_layer_projection(inner))
        result: torch.Tensor = x * layer.layer_scalar
        return result


# name of the norm before attention, after it, before the MLP, after it; "" where there is none. The first that fits
_NORMS = (
    ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
    ("input_layernorm", "", "post_attention_layernorm", ""),
)
_ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm", "v_norm"}
_TOKEN_INPUT = {"act_fn", "per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"}
_EXPERTS = {"router", "experts", *(f"{n}_feedforward_layernorm_{i}" for n, i in (("pre", 2), ("post", 1), ("post", 2)))}


def layer_parts(layer: Any) -> LayerParts:
    """The parts of a decoder layer whose matrices are packed; UnknownPartError where it has others."""
    module: Any = native()
    children = {name for name, child in layer.named_children() if not isinstance(child, nn.Dropout)}
    experts = children >= _EXPERTS
    children -= _EXPERTS if experts else set()
    children -= _TOKEN_INPUT if children >= _TOKEN_INPUT else set()
    names = next((names for names in _NORMS if children == {"self_attn", "mlp", *names} - {""}), None)
    if names is None:
        raise UnknownPartError(f"{type(layer).__name__} is made of {', '.join(sorted(children))}")
    before, after, before_mlp, after_mlp = (getattr(layer, name) if name else None for name in names)
    residual = float(getattr(layer, "residual_multiplier", 1.0))
    attention = layer.self_attn
    made, heads = _attention(attention, before, after, residual)
    mlp, activation = (None, None) if experts else _mlp(layer.mlp, before_mlp, after_mlp, residual)
    python: PythonMlp | DenseAndExperts | None = None
    if experts:
        python = DenseAndExperts(layer)
    elif mlp is None:
        nothing = nn.Identity()
        python = PythonMlp(before_mlp or nothing, layer.mlp, after_mlp or nothing, residual)
    layer_type = str(getattr(attention, "layer_type", ""))
    shares = layer_type if getattr(attention, "is_kv_shared_layer", False) else None
    stores = layer_type if getattr(attention, "store_full_length_kv", False) else None
    tail = LayerTail(layer) if hasattr(layer, "layer_scalar") else None
    kind = (
        type(layer).__name__,
        heads,
        getattr(attention, "sliding_window", None),
        python is None,
        activation,
        shares,
        stores,
    )
    q_heads, kv_heads, dim, rotates = heads
    compiled = module.PackedLayer(made, mlp)
    return LayerParts(compiled, q_heads, kv_heads, dim, rotates, python, tail, shares, stores, kind)


def _attention(attention: Any, before: Any, after: Any, residual: float) -> tuple[Any, tuple[int, int, int, bool]]:
    module: Any = native()
    children = {name for name, child in attention.named_children() if not isinstance(child, nn.Dropout)}
    if not children <= _ATTENTION:
        raise UnknownPartError(f"{type(attention).__name__} has {', '.join(sorted(children - _ATTENTION))}")
    dim = int(attention.head_dim)
    output = _packed(attention, "o_proj")
    q_heads = output.in_features // dim
    if "qkv_proj" in children:
        together = [_packed(attention, "qkv_proj")]
        kv_heads = (together[0].out_features // dim - q_heads) // 2
    elif getattr(attention, "is_kv_shared_layer", False):
        together, kv_heads = [_packed(attention, "q_proj")], 0
    else:
        values = "k_proj" if getattr(attention, "use_alternative_attention", False) else "v_proj"
        together = [_packed(attention, name) for name in ("q_proj", "k_proj", values)]
        kv_heads = together[1].out_features // dim
    rotates = bool(getattr(attention, "use_rope", True))
    sinks = getattr(attention, "sinks", None)
    part = module.AttentionPart(
        before=norm(before),
        qkv=joined(*together).group,
        q_heads=q_heads,
        kv_heads=kv_heads,
        dim=dim,
        q_norm=norm(getattr(attention, "q_norm", None)),
        k_norm=norm(getattr(attention, "k_norm", None)),
        v_norm=norm(getattr(attention, "v_norm", None), dim),
        rotated=_rotated(attention, dim) if rotates else 0,
        interleaved=False,
        scale=float(attention.scaling),
        softcap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        sinks=[] if sinks is None else sinks.detach().float().tolist(),
        output=output.product.group,
        after=norm(after),
        residual=residual,
    )
    return part, (q_heads, kv_heads, dim, rotates)


def _rotated(attention: Any, dim: int) -> int:
    """Values of a head that RoPE turns."""
    parameters = getattr(attention.config, "rope_parameters", None) or {}
    partial = parameters.get("partial_rotary_factor", None) if isinstance(parameters, dict) else None
    return int(dim * float(partial or 1.0))


def _mlp(mlp: Any, before: Any, after: Any, residual: float) -> tuple[Any, int | None]:
    """The compiled part and its activation, None for an MLP of another kind."""
    module: Any = native()
    children = {name: child for name, child in mlp.named_children() if not isinstance(child, nn.Dropout)}
    act_fn = children.pop("act_fn", None) or children.pop("activation_fn", None)
    activation = None if act_fn is None else activation_number(act_fn)
    plain = all(isinstance(child, PackedLinear) and child.order is None for child in children.values())
    if activation is None or not plain:
        return None, None
    if children.keys() == {"gate_up_proj", "down_proj"}:
        gate_up = [children["gate_up_proj"]]
    elif children.keys() == {"gate_proj", "up_proj", "down_proj"}:
        gate_up = [children["gate_proj"], children["up_proj"]]
    else:
        return None, None
    part = module.MlpPart(
        before=norm(before),
        gate_up=joined(*gate_up).group,
        activation=activation,
        down=children["down_proj"].product.group,
        after=norm(after),
        residual=residual,
    )
    return part, activation


def _packed(owner: Any, name: str) -> PackedLinear:
    found = getattr(owner, name, None)
    if not isinstance(found, PackedLinear) or found.order is not None:
        raise UnknownPartError(f"{name} of {type(owner).__name__} isn't packed")
    return found


def joined(*linears: PackedLinear) -> Product:
    """The product of several layers with one input, their results side by side."""
    if len(linears) == 1:
        return linears[0].product
    return Product([linear.tensor for linear in linears], [linear.bias for linear in linears])


def norm(of: Any, size: int = 0) -> Any:
    """The compiled norm that does what a module does; an empty one for None. size: of what a norm without a weight norms."""
    module: Any = native()
    if of is None:
        return module.Norm([], 0.0)
    weight = getattr(of, "weight", None)
    epsilon = getattr(of, "variance_epsilon", getattr(of, "eps", None))
    if weight is None and size and epsilon is not None:
        weight = torch.ones(size)
    if weight is None or epsilon is None:
        raise UnknownPartError(f"{type(of).__name__} has no weight and epsilon")
    weight = weight.detach().float()
    x = torch.linspace(-1.0, 2.0, weight.numel())
    normed = x * torch.rsqrt((x * x).mean() + float(epsilon))
    with torch.inference_mode():
        found = of(x)
    for factor in (weight, 1.0 + weight):
        if torch.allclose(found, normed * factor, rtol=1e-4, atol=1e-6):
            return module.Norm(factor.tolist(), float(epsilon))
    raise UnknownPartError(f"{type(of).__name__} does something else than a norm by the root mean square")
