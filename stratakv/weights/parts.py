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
    the compiled layer holds it. kind: equal for layers that are alike."""

    compiled: Any
    q_heads: int
    kv_heads: int
    dim: int
    rotates: bool
    mlp: PythonMlp | None
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


# name of the norm before attention, after it, before the MLP, after it; "" where there is none. The first that fits
_NORMS = (
    ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
    ("input_layernorm", "", "post_attention_layernorm", ""),
)
_ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm"}


def layer_parts(layer: Any) -> LayerParts:
    """The parts of a decoder layer whose matrices are packed; UnknownPartError where it has others."""
    module: Any = native()
    children = {name for name, child in layer.named_children() if not isinstance(child, nn.Dropout)}
    names = next((names for names in _NORMS if children == {"self_attn", "mlp", *names} - {""}), None)
    if names is None:
        raise UnknownPartError(f"{type(layer).__name__} is made of {', '.join(sorted(children))}")
    before, after, before_mlp, after_mlp = (getattr(layer, name) if name else None for name in names)
    residual = float(getattr(layer, "residual_multiplier", 1.0))
    attention = layer.self_attn
    made, heads = _attention(attention, before, after, residual)
    mlp, activation = _mlp(layer.mlp, before_mlp, after_mlp, residual)
    python = None
    if mlp is None:
        nothing = nn.Identity()
        python = PythonMlp(before_mlp or nothing, layer.mlp, after_mlp or nothing, residual)
    kind = (type(layer).__name__, heads, getattr(attention, "sliding_window", None), python is None, activation)
    q_heads, kv_heads, dim, rotates = heads
    return LayerParts(module.PackedLayer(made, mlp), q_heads, kv_heads, dim, rotates, python, kind)


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
    else:
        together = [_packed(attention, name) for name in ("q_proj", "k_proj", "v_proj")]
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
        v_norm=norm(None),
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


def norm(of: Any) -> Any:
    """The compiled norm that does what a module does; an empty one for None."""
    module: Any = native()
    if of is None:
        return module.Norm([], 0.0)
    weight = getattr(of, "weight", None)
    epsilon = getattr(of, "variance_epsilon", getattr(of, "eps", None))
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
