"""Other projects' GPU kernels are called as they are declared: stand-ins with their interfaces attend in plain torch."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stratakv.bench.peers.gpu_attention import Decode, FlashInfer, VllmTurboQuant

CASE = Decode(3, 37, 8, torch.randn(20, 2, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16))


def install(monkeypatch: pytest.MonkeyPatch, name: str, **what: Any) -> None:
    """A module of that name, and its packages."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            module = ModuleType(path)
            module.__spec__, module.__path__ = ModuleSpec(path, None, is_package=True), []
            monkeypatch.setitem(sys.modules, path, module)
    for key, value in what.items():
        setattr(sys.modules[name], key, value)


def attended(query: torch.Tensor, cache: torch.Tensor, tables: list[list[int]], length: int) -> torch.Tensor:
    """cache: [pages, 2, tokens, kv_heads, dim]."""
    out = []
    for q, table in zip(query, tables, strict=True):
        k, v = (cache[table, side].flatten(0, 1)[:length].transpose(0, 1)[None].float() for side in (0, 1))
        out.append(F.scaled_dot_product_attention(q[None, :, None].float(), k, v, enable_gqa=True)[0, :, 0])
    return torch.stack(out).to(query.dtype)


def expected(query: torch.Tensor) -> torch.Tensor:
    k = CASE.states.repeat(2, 1, 1)
    rows = [torch.cat([k, k, k, k, k, k, k, k])[48 * s : 48 * s + 37] for s in range(3)]  # pages of 16: 48 a sequence
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q[None, :, None].float(),
                r.transpose(0, 1)[None].float(),
                r.transpose(0, 1)[None].float(),
                enable_gqa=True,
            )[:, :, 0]
            for q, r in zip(query, rows, strict=True)
        ]
    )


def query() -> torch.Tensor:
    return torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


class Wrapper:
    """flashinfer.BatchDecodeWithPagedKVCacheWrapper."""

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = "NHD", *, use_tensor_cores: bool = False):
        assert kv_layout == "NHD" and float_workspace_buffer.dtype == torch.uint8 and use_tensor_cores

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        assert (num_qo_heads, num_kv_heads, head_dim, q_data_type, kv_data_type) == (8, 2, 32, *[torch.bfloat16] * 2)
        assert {each.dtype for each in (indptr, indices, last_page_len)} == {torch.int32}
        ends = indptr.tolist()
        self.tables = [indices.tolist()[a:b] for a, b in pairwise(ends)]
        lengths = {(len(t) - 1) * page_size + n for t, n in zip(self.tables, last_page_len.tolist(), strict=True)}
        (self.length,) = lengths

    def run(self, q: torch.Tensor, paged_kv_cache: torch.Tensor) -> torch.Tensor:
        return attended(q, paged_kv_cache, self.tables, self.length)


def test_flashinfer_reads_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "isn't installed" in str(FlashInfer().missing())
    install(monkeypatch, "flashinfer", BatchDecodeWithPagedKVCacheWrapper=Wrapper)
    assert FlashInfer().missing() is None and FlashInfer().nbytes(CASE) == 3 * 37 * 2 * 32 * 4
    torch.testing.assert_close(FlashInfer().prepare(CASE)(query()), expected(query()).to(torch.bfloat16))


def store(
    key: torch.Tensor,
    value: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    PiT: torch.Tensor,
    midpoints: torch.Tensor,
    mse_bits: int,
    key_packed_size: int,
    value_quant_bits: int,
    key_fp8: bool = False,
) -> None:
    """vllm's triton_turboquant_store; here the slots' numbers are written, and the states kept beside them."""
    torch.testing.assert_close(PiT @ PiT.T, torch.eye(32))
    assert (mse_bits, key_packed_size, value_quant_bits, key_fp8) == (4, 18, 4, False)
    assert len(midpoints) == 15 and bool((midpoints[1:] > midpoints[:-1]).all())
    kv_cache.view(-1, *kv_cache.shape[2:])[slot_mapping.long(), :, 0] = 1
    store.states = key, value  # type: ignore[attr-defined]


def decode(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    Pi: torch.Tensor,
    centroids: torch.Tensor,
    scale: float,
    mse_bits: int,
    key_packed_size: int,
    value_quant_bits: int,
    key_fp8: bool = False,
    norm_correction: bool = False,
    PiT: torch.Tensor | None = None,
) -> torch.Tensor:
    """vllm's triton_turboquant_decode_attention."""
    assert bool(kv_cache[..., 0].all()) and kv_cache.shape[1:] == (16, 2, 38) and len(centroids) == 16
    assert norm_correction and scale == 32**-0.5 and seq_lens.tolist() == [37] * 3
    key, value = (x.unflatten(0, (-1, 16)) for x in store.states)  # type: ignore[attr-defined]
    return attended(query, torch.stack([key, value], 1), block_table.tolist(), 37)


def test_vllm_s_kernels_are_called_as_its_backend_does(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = VllmTurboQuant("turboquant_4bit_nc")
    assert peer.missing() == "vLLM isn't installed" and peer.name == "vLLM 4bit_nc"
    install(monkeypatch, "vllm")
    assert "no TurboQuant kernels where vLLM 0.32 has them" in str(peer.missing())
    config = SimpleNamespace(
        slot_size_aligned=38,
        centroid_bits=4,
        mse_bits=4,
        key_packed_size=18,
        effective_value_quant_bits=4,
        key_fp8=False,
        norm_correction=True,
    )
    made = SimpleNamespace(from_cache_dtype=lambda preset, head_dim: config)
    quantization = "vllm.model_executor.layers.quantization.turboquant"
    install(monkeypatch, f"{quantization}.config", TurboQuantConfig=made)
    install(monkeypatch, f"{quantization}.centroids", get_centroids=lambda dim, bits: torch.randperm(1 << bits) / 9)
    install(monkeypatch, "vllm.v1.attention.ops.triton_turboquant_store", triton_turboquant_store=store)
    install(monkeypatch, "vllm.v1.attention.ops.triton_turboquant_decode", triton_turboquant_decode_attention=decode)
    assert peer.missing() is None and peer.nbytes(CASE) == 3 * 37 * 2 * 38
    torch.testing.assert_close(peer.prepare(CASE)(query()), expected(query()).to(torch.bfloat16))
