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
    """x [..., in_features] to [..., out_features], as `nn.Linear`.

    order: which value of x each of the file's columns takes, None: in order.
    """

    def __init__(self, tensor: PackedTensor, bias: torch.Tensor | None, *, exact: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = tensor.columns, tensor.rows
        self.tensor = tensor
        self.order: torch.Tensor | None = None
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.product = Product([tensor], [bias], exact=exact)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        return self.product(x if self.order is None else x.index_select(-1, self.order))

    @property
    def weight(self) -> torch.Tensor:
        """The matrix unpacked, [out_features, in_features] float32: for code that looks at it, slow and large."""
        rows = torch.empty(self.out_features, self.in_features)
        unpack_into(rows, self.product.matrices[0])
        return rows if self.order is None else rows[:, self.order.argsort()]

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


class Gated(nn.Module):
    """What stands between an expert's two products: act_fn(gate) * up. activation: the compiled one's number, None for none."""

    def __init__(self, act_fn: nn.Module) -> None:
        super().__init__()
        self.act_fn = act_fn
        self.activation = activation_number(act_fn)

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """gate, up: [.., inner]."""
        out: torch.Tensor = self.act_fn(gate) * up
        return out


class ClampedSwiGLU(nn.Module):
    """GPT-OSS's: gate sigmoid(alpha gate) (up + 1), gate at most `limit`, up within it on both sides."""

    activation = None

    def __init__(self, alpha: float, limit: float) -> None:
        super().__init__()
        self.alpha, self.limit = alpha, limit

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """gate, up: [.., inner]."""
        gate = gate.clamp(max=self.limit)
        return (up.clamp(-self.limit, self.limit) + 1) * (gate * torch.sigmoid(gate * self.alpha))


class PackedExperts(nn.Module):
    """The experts of one layer, each matrix a packed tensor.

    gate_up: gate and up [experts, inner, width], or one tensor [experts, 2 inner, width]; down: [experts, width, inner].
    biases: of gate and up [experts, 2 inner] and of down [experts, width], None without any.
    """

    def __init__(
        self,
        gate_up: tuple[PackedTensor, ...],
        down: PackedTensor,
        gating: Gated | ClampedSwiGLU,
        biases: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.exact = exact
        self.num_experts, self.hidden_dim, self.intermediate_dim = down.shape
        self.gating, self.biases = gating, biases
        self.tensors = *gate_up, down
        self._first = [tensor.matrix(rows=tensor.shape[1]) for tensor in self.tensors]
        self._products: dict[int, tuple[Product, Product]] = {}

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, width]; top_k_index, top_k_weights [tokens, k]: the weighted sum of each token's experts."""
        tokens, chosen = top_k_index.shape
        differentiable = torch.is_grad_enabled() and hidden_states.requires_grad
        if not differentiable and not self.exact:
            out = self._together(hidden_states.float().contiguous(), top_k_index.to(torch.int64).contiguous())
            return (out.view(tokens, chosen, -1) * top_k_weights.unsqueeze(-1)).sum(1).to(hidden_states.dtype)
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if not 0 <= expert < self.num_experts:
                continue
            token, position = torch.where(top_k_index == expert)
            gate_up, down = self._one(expert)
            out = down(self.gating(*gate_up(hidden_states[token]).chunk(2, dim=-1)))
            result = result.index_add(0, token, (out * top_k_weights[token, position, None]).to(result.dtype))
        return result

    def _together(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """One compiled call a matrix for all of the tokens' experts: [tokens * k, width]."""
        module: Any = native()
        slots, share, inner = index.numel(), index.shape[1], self.intermediate_dim
        threads = torch.get_num_threads()
        both, gated = torch.empty(slots, 2 * inner), torch.empty(slots, inner)
        out = torch.empty(slots, self.hidden_dim)
        where, experts = index.data_ptr(), self.num_experts
        *gate_up, down = self._first
        at = 0
        for matrix, tensor in zip(gate_up, self.tensors, strict=False):
            matrix.multiply_chosen(
                experts, where, slots, share, x.data_ptr(), both[:, at:].data_ptr(), 2 * inner, threads
            )
            at += tensor.shape[1]
        self._add_bias(0, both, index)
        if self.gating.activation is None:
            gated = self.gating(both[:, :inner], both[:, inner:])
        else:
            module.gate(self.gating.activation, both.data_ptr(), slots, inner, gated.data_ptr(), threads)
        down.multiply_chosen(experts, where, slots, 1, gated.data_ptr(), out.data_ptr(), self.hidden_dim, threads)
        self._add_bias(1, out, index)
        return out

    def _add_bias(self, which: int, values: torch.Tensor, index: torch.Tensor) -> None:
        if self.biases is None:
            return
        experts = index.flatten()
        none = (experts < 0) | (experts >= self.num_experts)  # transformers' mark for a token of no expert
        values += self.biases[which][experts.masked_fill(none, 0)].masked_fill(none[:, None], 0.0)

    def _one(self, expert: int) -> tuple[Product, Product]:
        """An expert's products: gate and up, and down."""
        if expert not in self._products:
            tensors = []
            for whole in self.tensors:
                nbytes = whole.nbytes // self.num_experts
                one = {"shape": whole.shape[1:], "offset": whole.offset + expert * nbytes, "nbytes": nbytes}
                tensors.append(PackedTensor(**{**whole.__dict__, **one}))
            biases: list[torch.Tensor | None] = [None] * len(tensors)
            if self.biases is not None:
                sizes = [tensor.rows for tensor in tensors[:-1]]
                biases = [*self.biases[0][expert].split(sizes), self.biases[1][expert]]
            first, last = (
                Product(tensors[part], biases[part], exact=self.exact) for part in (slice(-1), slice(-1, None))
            )
            self._products[expert] = first, last
        return self._products[expert]

    def extra_repr(self) -> str:
        """Sizes and types."""
        types = ", ".join(tensor.type.name for tensor in self.tensors)
        return f"{self.num_experts} experts, {self.hidden_dim}, {self.intermediate_dim}, {types}"


def gating_of(experts: nn.Module) -> Gated | ClampedSwiGLU | None:
    """What a module of experts does between its products; None for experts of an unknown kind.

    Known are those of most models (gate above up in one parameter, rows of outputs, no biases) and GPT-OSS's (gate and up in
    turn, columns of outputs, biases): llama.cpp writes both alike.
    """
    matrices = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    if any(not isinstance(matrix, nn.Parameter) or matrix.dim() != 3 for matrix in matrices):
        return None
    gate_up, down = (tuple(matrix.shape) for matrix in matrices)  # type: ignore[union-attr]
    leaves = {name for name, _ in experts.named_parameters()}
    if leaves == {"gate_up_proj", "down_proj"}:
        fits = gate_up == (down[0], 2 * down[2], down[1])
        transposed = getattr(experts, "is_transposed", down[1] == down[2])  # a square doesn't show it
        plain = fits and not transposed and getattr(experts, "is_concatenated", True)
        act_fn = getattr(experts, "act_fn", None)
        return Gated(act_fn) if plain and isinstance(act_fn, nn.Module) else None
    if leaves != {"gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"}:
        return None
    if not getattr(experts, "is_transposed", False) or getattr(experts, "is_concatenated", True):
        return None
    gating = ClampedSwiGLU(float(getattr(experts, "alpha", 0.0)), float(getattr(experts, "limit", 0.0)))
    gate, up = torch.linspace(-20.0, 20.0, 41), torch.linspace(15.0, -15.0, 41)
    apply_gate: Any = experts._apply_gate
    theirs = apply_gate(torch.stack([gate, up], -1).flatten())
    return gating if torch.allclose(gating(gate, up), theirs, rtol=1e-4, atol=1e-6) else None


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
