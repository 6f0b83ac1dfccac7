"""What a kernel is: an object that writes packed pages and attends over them. `Torch` is the oracle of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.step import Step
from stratakv.pages.layout import Order, PageLayout
from stratakv.pages.pool import Pool


@dataclass(frozen=True, eq=False)
class Options:
    """How a layer attends.

    scale: what scores are multiplied by. softcap: logits become softcap * tanh(logits / softcap). sinks: [q_heads], one more
    logit a head that takes weight and gives nothing.
    """

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class Attended(NamedTuple):
    """out: [query tokens, q_heads, v_dim] in the model's basis and the query's dtype, contiguous; zeros where a query
    sees nothing

    lse: float32 [query tokens, q_heads], the logarithm of the sum of exponentiated logits, the sink's among them: the sink's
    alone where a query sees nothing, -inf without one; None where it wasn't asked for.
    """

    out: torch.Tensor
    lse: torch.Tensor | None = None


class Part(NamedTuple):
    """Pages of one kind, and what queries see of them."""

    pool: Pool
    step: Step


class Kernel(Protocol):
    """One way to write and read pages. Kernels hold nothing of a step or a pool."""

    @property
    def name(self) -> str:
        """What STRATAKV_KERNEL calls it."""

    def refuses(self, layout: PageLayout, device: torch.device) -> str | None:
        """Why it can't work on pages of this layout there, in words; None where it can."""

    def append(
        self, pool: Pool, key: torch.Tensor, value: torch.Tensor, slots: NDArray[np.int64], status: torch.Tensor
    ) -> None:
        """Encode K and V of some tokens into their pages, each token wherever it belongs.

        key, value: floats [tokens, kv_heads, k_dim or v_dim] in the model's basis, strided as they come. slots: int64 [tokens],
        page * page_tokens + place within the page; a negative one isn't stored.

        status: int32 [2] on the pool's device, K and V: where a side has inf, nan or values too large for its type, NON_FINITE or
        TOO_LARGE is written there, otherwise it is left as it is. Nothing waits for the device. What was then written of these
        tokens is undefined: whoever reads the status sees to it that their sequences' lengths don't grow.
        """

    def attend(self, query: torch.Tensor, pool: Pool, step: Step, options: Options, *, lse: bool = False) -> Attended:
        """Scaled dot-product attention of each sequence's query tokens over its pages.

        query: floats [query tokens, q_heads, k_dim] in the model's basis, all sequences' one after another, strided as they come;
        q_heads a multiple of the layout's kv_heads. lse: whether the log-sum-exp is wanted. ValueError where shapes don't fit or
        a query sees tokens beyond its block table.
        """

    def attend_both(self, query: torch.Tensor, written: Part, other: Part, options: Options) -> torch.Tensor:
        """The output of one attention over two kinds of pages, of which none holds what the other one does.

        Both steps have the same query tokens, in the same sequences or, the other one, in longer ones.
        """

    def convert(self, source: Pool, target: Pool, pairs: Sequence[tuple[int, int]], status: torch.Tensor) -> None:
        """Whole pages become pages of another pool, in its types; the kernel is the target's.

        From their stored bytes, un-rotated and encoded with additions in a fixed order: what a page becomes depends on what it
        holds alone. pairs: numbers of a page in source and target. status: as `append`'s, of what is too large for the target's
        types.
        """


def attend_apart(query: torch.Tensor, parts: Sequence[tuple[Kernel, Part]], options: Options) -> Attended:
    """Parts attended one by one and merged."""
    found, left = [], options
    for kernel, part in parts:
        found.append(kernel.attend(query, part.pool, part.step, left, lse=True))
        left = replace(options, sinks=None)  # they count once
    return merged(found)


class DeviceKernel(Kernel, Protocol):
    """The kernel of another kind of device than a CPU: what `choice` and `show` ask of it."""

    @property
    def device(self) -> str:
        """The kind, as torch calls it: "cuda"."""

    @property
    def remark(self) -> str:
        """What `show` says beside its name, such as whether it was measured."""

    @property
    def order(self) -> Order:
        """How bytes lie in the pages that it reads."""

    def missing(self) -> str | None:
        """Why it can't be had on this machine, in words, whatever devices there are; None where it can."""

    def here(self) -> str | None:
        """The name of this machine's device of that kind; None where there is none."""


def merged(parts: Sequence[Attended]) -> Attended:
    """One attention over all that the parts saw, of which none saw the same; each with its log-sum-exp. A sink counts
    in each part that was given it: give it to one."""
    found = [part.lse for part in parts if part.lse is not None]
    if len(found) < len(parts):
        raise ValueError("parts can be merged by their log-sum-exp only: attend with lse=True")
    sums = torch.stack(found)
    total = torch.logsumexp(sums, dim=0)
    shares = torch.where(torch.isfinite(sums), (sums - total).exp(), 0.0).unsqueeze(-1)
    out = sum(share * part.out.float() for share, part in zip(shares, parts, strict=True))
    return Attended(torch.as_tensor(out).to(parts[0].out.dtype), total)
