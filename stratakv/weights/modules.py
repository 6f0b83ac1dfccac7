"""Modules of transformers models whose matrices stay in a file's blocks: the same inputs, the same outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2CLS, ClassInstantier

from stratakv.kernels.native import native
from stratakv.weights.packed import PackedTensor, Product, unpack_into

# transformers' names of what the compiled `gate` knows, in its order
_ACTIVATIONS = {"silu": 0, "swish": 0, "gelu": 1, "gelu_pytorch_tanh": 2}


class PackedLinear(nn.Module):
    """x [..., in_features] to [..., out_features], as `nn.Linear`."""

    def __init__(self, tensor: PackedTensor, bias: torch.Tensor | None, *, exact: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = tensor.columns, tensor.rows
        self.tensor = tensor
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.product = Product([tensor], [bias], exact=exact)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        return self.product(x)

    @property
    def weight(self) -> torch.Tensor:
        """The matrix unpacked, [out_features, in_features] float32: for code that looks at it, slow and large."""
        rows = torch.empty(self.out_features, self.in_features)
        unpack_into(rows, self.product.matrices[0])
        return rows

    def extra_repr(self) -> str:
        """Sizes and type."""
        return f"{self.in_features}, {self.out_features}, {self.tensor.type.name}"


class PackedEmbedding(nn.Module):
    """Rows of a packed matrix by number, as `nn.Embedding`; scale: what the rows are multiplied by, as Gemma's are."""

    def __init__(self, tensor: PackedTensor, dtype: torch.dtype, scale: float = 1.0) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = tensor.shape
        self.tensor, self.dtype, self.scale = tensor, dtype, scale
        self.matrix = tensor.matrix()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: int [...]; returns [..., embedding_dim]. IndexError for ids outside of the vocabulary."""
        index = ids.to(torch.int64).contiguous()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.num_embeddings:
            raise IndexError(f"a token id outside of the vocabulary of {self.num_embeddings}")
        rows = torch.empty(index.numel(), self.embedding_dim)
        unpack_into(rows, self.matrix, index=index)
        if self.scale != 1.0:
            rows *= self.scale
        return rows.view(*ids.shape, self.embedding_dim).to(self.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """As PackedLinear.weight."""
        rows = torch.empty(self.num_embeddings, self.embedding_dim)
        unpack_into(rows, self.matrix)
        return rows

    def extra_repr(self) -> str:
        """Sizes and type."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.tensor.type.name}"


class PackedExperts(nn.Module):
    """The experts of one layer: gate, up [experts, inner, width] and down [experts, width, inner], each a packed tensor."""

    def __init__(
        self, gate: PackedTensor, up: PackedTensor, down: PackedTensor, act_fn: nn.Module, *, exact: bool = False
    ) -> None:
        super().__init__()
        self.exact = exact
        self.num_experts, self.intermediate_dim, self.hidden_dim = gate.shape
        self.act_fn = act_fn
        self.activation = activation_number(act_fn)
        self.tensors = gate, up, down
        self._first = [tensor.matrix(rows=tensor.shape[1]) for tensor in self.tensors]
        self._products: dict[tuple[int, int], Product] = {}

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, width]; top_k_index, top_k_weights [tokens, k]: the weighted sum of each token's experts."""
        tokens, chosen = top_k_index.shape
        differentiable = torch.is_grad_enabled() and hidden_states.requires_grad
        if not differentiable and not self.exact and self.activation is not None:
            out = self._together(hidden_states.float().contiguous(), top_k_index.to(torch.int64).contiguous())
            return (out.view(tokens, chosen, -1) * top_k_weights.unsqueeze(-1)).sum(1).to(hidden_states.dtype)
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if not 0 <= expert < self.num_experts:
                continue
            token, position = torch.where(top_k_index == expert)
            states = hidden_states[token]
            inner = self.act_fn(self._product(0, expert)(states)) * self._product(1, expert)(states)
            out = self._product(2, expert)(inner) * top_k_weights[token, position, None]
            result = result.index_add(0, token, out.to(result.dtype))
        return result

    def _together(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """One compiled call a matrix for all of the tokens' experts: [tokens * k, width]."""
        module: Any = native()
        slots, share, inner = index.numel(), index.shape[1], self.intermediate_dim
        threads = torch.get_num_threads()
        both, gated = torch.empty(slots, 2 * inner), torch.empty(slots, inner)
        out = torch.empty(slots, self.hidden_dim)
        where, experts = index.data_ptr(), self.num_experts
        gate, up, down = self._first
        gate.multiply_chosen(experts, where, slots, share, x.data_ptr(), both.data_ptr(), 2 * inner, threads)
        up.multiply_chosen(experts, where, slots, share, x.data_ptr(), both[:, inner:].data_ptr(), 2 * inner, threads)
        module.gate(self.activation, both.data_ptr(), slots, inner, gated.data_ptr(), threads)
        down.multiply_chosen(experts, where, slots, 1, gated.data_ptr(), out.data_ptr(), self.hidden_dim, threads)
        return out

    def _product(self, which: int, expert: int) -> Product:
        key = which, expert
        if key not in self._products:
            whole = self.tensors[which]
            nbytes = whole.nbytes // self.num_experts
            one = {"shape": whole.shape[1:], "offset": whole.offset + expert * nbytes, "nbytes": nbytes}
            self._products[key] = Product([PackedTensor(**{**whole.__dict__, **one})], [None], exact=self.exact)
        return self._products[key]

    def extra_repr(self) -> str:
        """Sizes and types."""
        types = ", ".join(tensor.type.name for tensor in self.tensors)
        return f"{self.num_experts} experts, {self.hidden_dim}, {self.intermediate_dim}, {types}"


def embedding_scale(module: nn.Module) -> float | None:
    """What an embedding multiplies its rows by; None for a module that does anything else. A small one of its class is asked."""
    if not isinstance(module, nn.Embedding):
        return None
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    scale, ids = getattr(module, "scalar_embed_scale", None), torch.arange(3)
    if not isinstance(scale, int | float):
        return None
    try:
        make: Any = type(module)
        small = make(3, 2, 0, embed_scale=1.5)
        rows = torch.arange(1.0, 7.0).view(3, 2)
        small.weight = nn.Parameter(rows, requires_grad=False)
        same = bool(torch.equal(small(ids), rows * 1.5))
    except (TypeError, ValueError, RuntimeError):
        return None
    return float(scale) if same else None


def activation_number(act_fn: nn.Module) -> int | None:
    """The compiled activation that does the same, None where there is none."""
    for name, number in _ACTIVATIONS.items():
        made = ClassInstantier(ACT2CLS)[name]
        if type(act_fn) is type(made) and vars(act_fn).get("approximate") == vars(made).get("approximate"):
            return number
    return None
