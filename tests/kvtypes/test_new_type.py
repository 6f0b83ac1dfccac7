"""CONTRIBUTING's recipe: a class and a line in the registry, and everything else knows the type, compiled kernels or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from packed_views import pages
from tiny_models import tiny_model
from torch import Tensor

from stratakv import KVCache, UserError, resolve, use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.paths import attention_line, attention_paths
from stratakv.kernels.choice import TORCH, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.status import new_codes
from stratakv.kvtypes import Field, KVType, registry
from stratakv.kvtypes.code import Code
from stratakv.kvtypes.hadamard import Rotation
from stratakv.kvtypes.packing import pack_f16, pack_plane, unpack_f16, unpack_plane


@dataclass(frozen=True, kw_only=True)
class RowType(KVType):
    """One f16 scale and int8 codes for the whole head."""

    def check(self, head_dim: int) -> None:
        if head_dim < 1:
            raise UserError(f"{self.name} can't store head_dim {head_dim}: allowed is any of 1 or more")

    def blocks(self, head_dim: int) -> int:
        return 1

    def fields(self, head_dim: int) -> tuple[Field, ...]:
        return Field("scale", 2), Field("codes", head_dim)

    def _encode(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        codes = (x / torch.where(scale > 0, scale, 1.0)).round().to(torch.int8)
        return torch.cat([pack_f16(scale[:, 0]), codes.view(torch.uint8)], dim=-1)

    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        return unpack_f16(packed[:, :2]) * packed[:, 2:].clone().view(torch.int8)


@dataclass(frozen=True, kw_only=True)
class RotatedRowType(RowType):
    """The same in a rotated basis."""

    def rotation(self, head_dim: int) -> Rotation:
        return Rotation(head_dim, 7)

    def _encode(self, x: Tensor) -> Tensor:
        return super()._encode(self.rotation(x.shape[-1]).exact(x))


@dataclass(frozen=True, kw_only=True)
class LevelType(KVType):
    """Sixteen levels in equal steps under one f16 scale for 32 values, packed as turbo4's: compiled kernels read it."""

    def check(self, head_dim: int) -> None:
        if head_dim % 32:
            raise UserError(f"{self.name} can't store head_dim {head_dim}: allowed are multiples of 32")

    def blocks(self, head_dim: int) -> int:
        return head_dim // 32

    def fields(self, head_dim: int) -> tuple[Field, ...]:
        return Field("scale", 2), Field("codes", 16)

    @property
    def packing(self) -> str:
        return "nibble"

    def code(self, head_dim: int) -> Code:
        return Code(tuple(range(-15, 16, 2)), unit=0.5)

    def _encode(self, x: Tensor) -> Tensor:
        x = x.view(len(x), -1, 32)
        scale = x.abs().amax(-1, keepdim=True) / 7.5
        codes = (x / torch.where(scale > 0, scale, 1.0) + 7.5).round().clamp(0, 15).to(torch.uint8)
        return torch.cat([pack_f16(scale[..., 0]), pack_plane(codes, 0, 4)], dim=-1).flatten(1)

    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        blocks = packed.reshape(len(packed), -1, 18)
        values = unpack_plane(blocks[..., 2:], 4).float() - 7.5
        return (unpack_f16(blocks[..., :2]) * values).reshape(len(packed), head_dim)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for type_ in (RowType(name="row8"), RotatedRowType(name="row8_turned"), LevelType(name="level4")):
        monkeypatch.setitem(registry._TYPES, type_.name, type_)


@pytest.mark.parametrize("kernel", kernel_names())
@pytest.mark.parametrize("profile", ["row8", "row8_turned", "row8/turbo8", "last1: row8_turned; rest: q8_0"])
@torch.no_grad()
def test_a_model_runs_with_it(profile: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    model = use(tiny_model("llama"))
    ids = torch.randint(3, 97, (2, 150), generator=torch.Generator().manual_seed(2))
    lossless, cache = KVCache(model.config, "f32"), KVCache(model.config, profile)
    for piece in ids.split([140, 9, 1], dim=1):
        expected = model(piece, past_key_values=lossless).logits
        torch.testing.assert_close(model(piece, past_key_values=cache).logits, expected, rtol=0, atol=0.2)
    assert cache.nbytes() == 2 * cache.profile.bytes_at(256), "two pages a sequence"
    assert not torch.equal(model(ids[:, :1], past_key_values=cache).logits, expected)


@pytest.mark.skipif(kernel_names() == ("torch",), reason="installed without a C++ compiler: everything runs in torch")
def test_show_says_where_plain_torch_reads_the_pages() -> None:
    config = tiny_model("llama").config
    profile = resolve("0,2: row8; rest: turbo4", geometry_of(config))
    paths = attention_paths(config, profile)
    assert paths["torch_layers"] == [0, 2]
    assert "in plain torch in layers 0, 2 (no compiled kernel for row8)" in attention_line(paths, 4)


@pytest.mark.parametrize("kernel", [name for name in kernel_names() if name != "torch"])
@pytest.mark.parametrize("queries", [1, 40])
def test_compiled_kernels_read_a_type_whose_packing_they_know(kernel: str, queries: int) -> None:
    """Its file and its line in the registry are all there is to it: no kernel knows its name."""
    for k, v in (("level4", "level4"), ("level4", "turbo4"), ("q8_0", "level4")):
        given = pages(k, v, (64, 64), 200)
        chosen = CpuKernel(kernel)
        assert chosen.refuses(given.pool.layout, given.pool.device) is None
        q = torch.randn(2, 4, queries, 64, generator=torch.Generator().manual_seed(0))
        out, expected = (given.attend(each, q).out for each in (chosen, TORCH))
        assert float((out - expected).norm() / expected.norm()) <= 1e-2
        before, states = given.pool.memory.clone(), torch.randn(5, 2, 64)
        written = []
        for each in (TORCH, chosen):
            given.pool.memory.copy_(before)
            each.append(given.pool, states, -states, np.arange(5), new_codes())
            written.append(given.pool.memory.clone())
        assert torch.equal(*written) and not torch.equal(written[0], before)


@pytest.mark.skipif(kernel_names() == ("torch",), reason="installed without a C++ compiler: everything runs in torch")
@torch.no_grad()
def test_a_model_runs_compiled_with_it() -> None:
    model = use(tiny_model("llama", head_dim=32))
    profile = resolve("level4", geometry_of(model.config))
    assert attention_paths(model.config, profile)["torch_layers"] == []
    ids = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(2))
    lossless, cache = KVCache(model.config, "f32"), KVCache(model.config, profile)
    for piece in ids.split([50, 9, 1], dim=1):
        expected = model(piece, past_key_values=lossless).logits
        torch.testing.assert_close(model(piece, past_key_values=cache).logits, expected, rtol=0, atol=0.3)
    assert isinstance(cache.layers[0].kernel, CpuKernel)
