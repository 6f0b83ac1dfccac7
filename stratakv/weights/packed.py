"""Products with matrices in a file's blocks: few tokens by ggml's row kernels, many by unpacked pieces and torch."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from gguf import GGMLQuantizationType

from stratakv.kernels.native import native
from stratakv.weights.mapped_file import MappedFile

# Values of a piece that is unpacked at once: it stays in the second-level cache until torch reads it
_PIECE = 2**19
_kept = threading.local()


@dataclass(frozen=True)
class PackedTensor:
    """A tensor in a mapped file. shape: as torch has it, matrices [rows, columns]. offset: of its first byte in the file.

    place: where transformers wants each stored row, None for the stored order.
    """

    file: MappedFile
    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    place: tuple[int, ...] | None = None

    @property
    def columns(self) -> int:
        """Values of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows, of all experts where there are several."""
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows

    def matrix(self, *, bias: torch.Tensor | None = None, rows: int | None = None) -> Any:
        """The compiled module's description; rows: of one expert."""
        module: Any = native()
        return module.Matrix(
            int(self.type),
            rows or self.rows,
            self.columns,
            self.file.address + self.offset,
            list(self.place or ()),
            [] if bias is None else bias.float().tolist(),
        )


class Product:
    """Some matrices of one input, their results side by side: [rows of the first | rows of the second | ...].

    A token's results depend on that token alone, to the bit, whatever is computed beside it (weights/cpu/tile.h). exact: unpack
    and multiply in float32, as the unpacked matrix would: activations of 8 bits are noise that hides damage of 1e-5 nats.
    """

    def __init__(self, tensors: list[PackedTensor], biases: list[torch.Tensor | None], *, exact: bool = False) -> None:
        module: Any = native()
        self.tensors = tensors
        self.matrices = [tensor.matrix(bias=bias) for tensor, bias in zip(tensors, biases, strict=True)]
        self.biases = [None if bias is None else bias.float() for bias in biases]
        self.group = module.MatrixGroup(self.matrices)
        self.columns = tensors[0].columns
        self.rows = sum(tensor.rows for tensor in tensors)
        self.exact = exact

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., columns]; returns [..., rows] in x's dtype."""
        if torch.is_grad_enabled() and x.requires_grad:
            out: torch.Tensor = _Differentiable.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        flat = x.to(torch.float32).contiguous()
        tokens = flat.numel() // self.columns
        kept: KeptResults | None = getattr(_kept, "results", None)
        rows = kept.memory(tokens) if kept is not None and kept.product is self else torch.empty(tokens, self.rows)
        out = rows.view(*x.shape[:-1], self.rows)
        if self.exact:
            self._in_float32(flat.view(tokens, self.columns), rows)
        else:
            self.group.multiply(flat.data_ptr(), tokens, out.data_ptr(), torch.get_num_threads())
        return out if x.dtype == torch.float32 else out.to(x.dtype)

    def _in_float32(self, x: torch.Tensor, out: torch.Tensor) -> None:
        at = 0
        for matrix, tensor, bias in zip(self.matrices, self.tensors, self.biases, strict=True):
            rows = max(16, _PIECE // tensor.columns)
            for first in range(0, tensor.rows, rows):
                piece = unpacked(matrix, tensor.columns, first, min(rows, tensor.rows - first))
                target = out[:, at + first : at + first + len(piece)]
                target.copy_(torch.mm(x, piece.t()))
            if bias is not None:
                out[:, at : at + tensor.rows] += bias
            at += tensor.rows

    def transposed(self, grad: torch.Tensor) -> torch.Tensor:
        """grad [tokens, rows] times the matrices: [tokens, columns], float32."""
        out = torch.zeros(len(grad), self.columns)
        at = 0
        for matrix, tensor in zip(self.matrices, self.tensors, strict=True):
            rows = max(16, _PIECE // tensor.columns)
            for first in range(0, tensor.rows, rows):
                piece = unpacked(matrix, tensor.columns, first, min(rows, tensor.rows - first))
                out.addmm_(grad[:, at + first : at + first + len(piece)], piece)
            at += tensor.rows
        return out


class KeptResults:
    """Within it the results of a product of this thread are written to the same memory each time, good until the next call.

    A step's logits are megabytes: the system would clear fresh pages for them (16 x 49,152 of them: 2 of 15 ms). Results of
    more than `most` bytes get memory of their own.
    """

    def __init__(self, product: Product, most: int = 2**24) -> None:
        self.product, self.most = product, most
        self._memory = torch.empty(0)

    def __enter__(self) -> None:
        _kept.results = self

    def __exit__(self, *_: object) -> None:
        _kept.results = None

    def memory(self, tokens: int) -> torch.Tensor:
        """float32 [tokens, rows of the product]."""
        size = tokens * self.product.rows
        if 4 * size > self.most:
            return torch.empty(tokens, self.product.rows)
        if self._memory.numel() < size:
            self._memory = torch.empty(size)
        return self._memory[:size].view(tokens, self.product.rows)


class _Differentiable(torch.autograd.Function):
    """The gradient by the input; the weights have none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: Product) -> torch.Tensor:
        ctx.product = product
        return product(x.detach())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        product: Product = ctx.product
        flat = grad.reshape(-1, product.rows).float()
        return product.transposed(flat).view(*grad.shape[:-1], product.columns).to(grad.dtype), None


def unpacked(matrix: Any, columns: int, first: int, count: int) -> torch.Tensor:
    """Rows first .. first + count, [count, columns] float32, in a buffer that the next call of this thread reuses."""
    buffer: torch.Tensor | None = getattr(_kept, "buffer", None)
    if buffer is None or buffer.numel() < count * columns:
        buffer = _kept.buffer = torch.empty(count * columns)
    rows = buffer[: count * columns].view(count, columns)
    unpack_into(rows, matrix, first=first)
    return rows


def unpack_into(rows: torch.Tensor, matrix: Any, *, first: int = 0, index: torch.Tensor | None = None) -> None:
    """Fill rows [count, columns], float32, from a matrix: rows `index` (int64), or first, first + 1, ..."""
    where = 0 if index is None else index.data_ptr()
    matrix.unpack(where, first, len(rows), rows.data_ptr(), torch.get_num_threads())
