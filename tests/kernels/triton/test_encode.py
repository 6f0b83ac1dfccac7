"""The Triton encoder, interpreted, gives the torch bodies' bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from row_pages import row_layout

from stratakv.kernels.choice import TORCH
from stratakv.kernels.kernel import Kernel
from stratakv.kernels.status import new_codes
from stratakv.kernels.triton.encoder import encoder_of
from stratakv.kernels.triton.kernel import Triton
from stratakv.kvtypes import NON_FINITE, TOO_LARGE, type_names
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool

# A page's end, strays, one that isn't stored; not a multiple of what a program takes
SLOTS = np.array([126, 127, 128, -1, 3, 200])


def encoded_here(name: str, dim: int) -> bool:
    layout = row_layout(name, name, (dim, dim))
    return Triton().refuses(layout, torch.device("cpu")) is None and encoder_of(layout, "k") is not None


TYPES = [name for name in type_names() if encoded_here(name, 128)]


def written(kernel: Kernel, layout: PageLayout, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """(all bytes of a pool, the status) once the states were appended."""
    pool = Pool.fixed(layout, 2, torch.device("cpu"))
    pool.memory.fill_(7)
    status = new_codes()
    kernel.append(pool, k, v, SLOTS, status)
    return pool.memory, status.tolist()


def states(dim: int) -> torch.Tensor:
    """[tokens, 2, dim], some of them nothing, next to nothing, large and all alike."""
    x = torch.randn(len(SLOTS), 2, dim, generator=torch.Generator().manual_seed(dim))
    x[0, 0], x[0, 1], x[1, 0] = 0, 0.5, x[1, 0] * 1e-30
    x[1, 1] *= 1e-5
    x[2] *= 500
    return x


def compare(name: str, dim: int) -> None:
    layout, x = row_layout(name, name, (dim, dim)), states(dim)
    (found, good), (expected, _) = (written(kernel, layout, x, -x) for kernel in (Triton(), TORCH))
    assert good == [0, 0] and torch.equal(found, expected), (name, dim)


@pytest.mark.parametrize("name", [name for name in TYPES if not name.startswith("tcq")])
def test_bytes_equal_the_torch_body_s(name: str) -> None:
    compare(name, 128)


@pytest.mark.parametrize(
    ("k", "v", "dim"),
    [("tcq4", "turbo4", 256), ("tcq5", "tcq6", 32), ("tcq3", "tcq2", 64), ("tcq4", "turbo8", 40)],
    ids=str,
)
def test_trellis_bytes_equal_the_torch_body_s(k: str, v: str, dim: int) -> None:
    """Few: interpreting a path's steps takes a second a side."""
    layout, x = row_layout(k, v, (dim, dim)), states(dim)
    (found, good), (expected, _) = (written(kernel, layout, x, -x) for kernel in (Triton(), TORCH))
    assert good == [0, 0] and torch.equal(found, expected)


def test_trellis_states_that_can_t_be_stored_are_told() -> None:
    layout, good = row_layout("tcq4", "f32", (32, 32)), states(32)
    for bad, code in ((torch.nan, NON_FINITE), (1e12, TOO_LARGE)):
        x = good.clone()
        x[4, 1, 9] = bad
        x[2, 0, 3] = bad
        assert written(Triton(), layout, x, good)[1] == [code, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dim", [16, 32, 64, 80, 96, 192, 256])
def test_bytes_at_other_dims(name: str, dim: int) -> None:
    if not encoded_here(name, dim):
        pytest.skip("the type encodes itself at this dim")
    compare(name, dim)


@pytest.mark.parametrize(("name", "dim"), [("turbo4", 256), ("q5_1", 80), ("q4_0_rot", 96), ("turbo3", 64)])
def test_bytes_at_some_other_dims(name: str, dim: int) -> None:
    compare(name, dim)


@pytest.mark.parametrize(("name", "dim"), [("turbo4", 96), ("turbo3", 80), ("turbo5", 112), ("turbo2", 192)])
def test_blocks_that_are_no_power_of_two(name: str, dim: int) -> None:
    """Rotated by Paley's matrices."""
    compare(name, dim)


@pytest.mark.parametrize("name", ["turbo4", "q8_0", "q4_1", "q5_0", "f16", "bf16"])
def test_what_can_t_be_stored_is_told(name: str) -> None:
    layout, good = row_layout(name, name, (64, 64)), states(64)
    for bad in (torch.inf, -torch.inf, torch.nan):
        x = good.clone()
        x[4, 1, 9] = bad
        assert written(Triton(), layout, x, good)[1] == [NON_FINITE, 0]
    x = good.clone()
    x[4, 1, 9] = 3.4e38 if name == "bf16" else 1e12
    assert written(Triton(), layout, good, x)[1] == [0, TOO_LARGE]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_in_half_precision_and_not_contiguous(dtype: torch.dtype) -> None:
    x = torch.randn(2, len(SLOTS), 64, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 1)
    layout = row_layout("turbo3", "q4_1", (64, 64))
    assert torch.equal(written(Triton(), layout, x, x)[0], written(TORCH, layout, x, x)[0])
