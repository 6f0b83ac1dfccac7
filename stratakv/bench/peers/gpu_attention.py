"""Other projects' decode attention on a GPU, each over pages of its own, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch

Run = Callable[[torch.Tensor], torch.Tensor]
"""Queries, bf16 [batch, q_heads, head_dim] -> outputs of the same shape."""


@dataclass(frozen=True)
class Decode:
    """One token each of `batch` sequences of `context` tokens. states: bf16 [tokens, kv_heads, head_dim], repeated as K and V of
    all tokens."""

    batch: int
    context: int
    q_heads: int
    states: torch.Tensor

    @property
    def kv_heads(self) -> int:
        return self.states.shape[1]

    @property
    def head_dim(self) -> int:
        return self.states.shape[2]

    def pages(self, page_tokens: int) -> int:
        """Of a sequence."""
        return -(-self.context // page_tokens)

    def page_states(self, page_tokens: int) -> torch.Tensor:
        """[pages of all sequences, page_tokens, kv_heads, head_dim]."""
        count = self.batch * self.pages(page_tokens) * page_tokens
        repeated = self.states.repeat(-(-count // len(self.states)), 1, 1)[:count]
        return repeated.view(-1, page_tokens, self.kv_heads, self.head_dim)


class GpuPeer(Protocol):
    """Another project's kernel."""

    @property
    def name(self) -> str:
        """As rows say it."""

    @property
    def kernel(self) -> str:
        """Its project."""

    def missing(self) -> str | None:
        """Why it can't be had here, in words; None where it can."""

    def nbytes(self, case: Decode) -> int:
        """Of K and V."""

    def prepare(self, case: Decode) -> Run:
        """Write the pages, and all that a step needs."""


@dataclass(frozen=True)
class FlashInfer:
    """Dense bf16 in pages of 16 tokens."""

    name: str = "FlashInfer bf16"
    kernel: str = "flashinfer"
    page_tokens: int = 16

    def missing(self) -> str | None:
        """See GpuPeer."""
        return None if find_spec("flashinfer") else "FlashInfer isn't installed: pip install flashinfer-python"

    def nbytes(self, case: Decode) -> int:
        """See GpuPeer."""
        return 2 * 2 * case.batch * case.context * case.kv_heads * case.head_dim

    def prepare(self, case: Decode) -> Run:
        """See GpuPeer."""
        flashinfer, device, size = import_module("flashinfer"), case.states.device, self.page_tokens
        pages = case.page_states(size)
        cache = torch.stack([pages, pages], dim=1)  # NHD: [pages, K and V, tokens, kv_heads, head_dim]
        count = case.pages(size)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(128 * 2**20, dtype=torch.uint8, device=device), "NHD", use_tensor_cores=True
        )
        wrapper.plan(
            torch.arange(case.batch + 1, dtype=torch.int32, device=device) * count,
            torch.arange(case.batch * count, dtype=torch.int32, device=device),
            torch.full((case.batch,), case.context - (count - 1) * size, dtype=torch.int32, device=device),
            case.q_heads,
            case.kv_heads,
            case.head_dim,
            size,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
        )

        def run(query: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = wrapper.run(query, cache)
            return found

        return run


@dataclass(frozen=True)
class VllmTurboQuant:
    """vLLM's TurboQuant kernels, called as its backend calls them. preset: of --kv-cache-dtype."""

    preset: str
    kernel: str = "vllm"
    page_tokens: int = 16

    @property
    def name(self) -> str:
        """See GpuPeer."""
        return f"vLLM {self.preset.removeprefix('turboquant_')}"

    def missing(self) -> str | None:
        """See GpuPeer."""
        if find_spec("vllm") is None:
            return "vLLM isn't installed"
        try:
            self._modules()
        except ImportError as error:
            return f"this vLLM has no TurboQuant kernels where vLLM 0.32 has them: {error}"
        return None

    def nbytes(self, case: Decode) -> int:
        """See GpuPeer."""
        return case.batch * case.context * case.kv_heads * int(self._config(case).slot_size_aligned)

    def prepare(self, case: Decode) -> Run:
        """See GpuPeer."""
        (_, centroids_of, store, decode), config = self._modules(), self._config(case)
        device, size = case.states.device, self.page_tokens
        count, dim = case.pages(size), case.head_dim
        slot = int(config.slot_size_aligned)
        cache = torch.zeros(case.batch * count, size, case.kv_heads, slot, dtype=torch.uint8, device=device)
        rotation = _hadamard(dim).to(device)
        centroids = centroids_of.get_centroids(dim, config.centroid_bits).to(device, torch.float32)
        ordered, _ = centroids.sort()
        states = case.page_states(size).flatten(0, 1)
        slots = torch.arange(len(states), dtype=torch.int32, device=device)
        sizes = {
            "mse_bits": config.mse_bits,
            "key_packed_size": config.key_packed_size,
            "value_quant_bits": config.effective_value_quant_bits,
            "key_fp8": config.key_fp8,
        }
        store.triton_turboquant_store(states, states, cache, slots, rotation, (ordered[:-1] + ordered[1:]) / 2, **sizes)
        table = torch.arange(case.batch * count, dtype=torch.int32, device=device).view(case.batch, count)
        lengths = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)

        def run(query: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = decode.triton_turboquant_decode_attention(
                query=query,
                kv_cache=cache,
                block_table=table,
                seq_lens=lengths,
                Pi=rotation,
                centroids=centroids,
                scale=dim**-0.5,
                norm_correction=config.norm_correction,
                PiT=rotation,
                **sizes,
            )
            return found

        return run

    def _config(self, case: Decode) -> Any:
        return self._modules()[0].TurboQuantConfig.from_cache_dtype(self.preset, case.head_dim)

    def _modules(self) -> tuple[Any, ...]:
        """Of its configuration, its centroids, and its kernels that store and decode."""
        quantization, ops = "vllm.model_executor.layers.quantization.turboquant", "vllm.v1.attention.ops"
        names = "config", "centroids"
        kernels = "triton_turboquant_store", "triton_turboquant_decode"
        found = *(f"{quantization}.{name}" for name in names), *(f"{ops}.{name}" for name in kernels)
        return tuple(import_module(name) for name in found)


GPU_PEERS: tuple[GpuPeer, ...] = (
    FlashInfer(),
    VllmTurboQuant("turboquant_4bit_nc"),
    VllmTurboQuant("turboquant_3bit_nc"),
)


def _hadamard(dim: int) -> torch.Tensor:
    """float32 [dim, dim], a power of two, orthogonal."""
    found = torch.ones(1, 1)
    while len(found) < dim:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found.mul(float(dim) ** -0.5)
