"""Convolutional codes of rate 1/2 that run round a block, and the cheapest way through one (Viterbi's algorithm).

Each value i of a block has a bit x(i), and two bits made of it and of those before it, sums modulo 2 over taps:

    z1(i) = sum over j of h0[j] x(i - j)        z0(i) = sum over j of h1[j] x(i - j)        subset(i) = 2 z1 + z0

Numbers of values are taken modulo the block ("tail-biting"), so that no state is stored. h0 and h1 are the
parity-check polynomials of G. Ungerboeck's codes for one dimension ("Channel coding with multilevel/phase signals",
1982), used feed-forward (M. Marcellin, T. Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources",
1990): nothing but x has to be known to read a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# The largest distance. Sums of a few of these fit in 16 bits beside what tells states apart, for compiled encoders.
FARTHEST = 4095
_SEAM = 32
_NEVER = 1 << 24  # more than any path costs
_LANES = 1 << 21  # metrics at once: bounds the memory of long batches


@dataclass(frozen=True)
class Trellis:
    """h0, h1: bit j is the tap of x delayed by j. memory: the longest delay."""

    h0: int
    h1: int

    @property
    def memory(self) -> int:
        return max(self.h0, self.h1).bit_length() - 1

    @property
    def states(self) -> int:
        """Of the bits before a value: bit j of a state is x delayed by j + 1."""
        return 1 << self.memory

    def subset_of(self, register: int) -> int:
        """Of x and the bits before it: bit j of the register is x delayed by j."""
        return 2 * ((register & self.h0).bit_count() & 1) + ((register & self.h1).bit_count() & 1)

    def subsets(self, x: Tensor) -> Tensor:
        """Integer bits x [n, block] -> subsets 0 ... 3 of the same shape and dtype."""
        z1, z0 = torch.zeros_like(x), torch.zeros_like(x)
        for j in range(self.memory + 1):
            delayed = x.roll(j, dims=-1) if j else x
            if self.h0 >> j & 1:
                z1 = z1 ^ delayed
            if self.h1 >> j & 1:
                z0 = z0 ^ delayed
        return 2 * z1 + z0

    def cheapest(self, distances: Tensor) -> Tensor:
        """Distances of each value to each subset, int32 [n, block, 4], 0 ... FARTHEST -> bits x, int32 [n, block].

        First the state at the block's start: the cheapest path over 32 values before it and 32 after (round and round where
        the block is shorter) from all states says it. Then the cheapest path from that state back to it. Of paths that cost
        the same, the one through the lower state before, from the end on; of last states, the lowest. All in integers: exact.
        """
        rows = max(1, _LANES // self.states)
        parts = [self._cheapest(part) for part in distances.split(rows) if len(part)]
        return torch.cat([distances.new_empty(0, distances.shape[1]), *parts])

    def _cheapest(self, distances: Tensor) -> Tensor:
        n, block, _ = distances.shape
        steps = distances.unbind(1)
        metric = distances.new_zeros(n, self.states)
        metric, _ = self._forward(metric, [steps[i % block] for i in range(-_SEAM, 0)])
        metric, decisions = self._forward(metric, [steps[i % block] for i in range(_SEAM)])
        number = torch.arange(self.states, dtype=metric.dtype, device=metric.device)
        last = (metric.to(torch.int64) * self.states + number).amin(1) % self.states
        start = self._back(last, decisions)[0]
        metric = distances.new_full((n, self.states), _NEVER).scatter_(1, start[:, None], 0)
        _, decisions = self._forward(metric, list(steps))
        _, x = self._back(start, decisions)
        return x.to(distances.dtype)

    def _forward(self, metric: Tensor, steps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Metrics [n, states] through the values' distances [n, 4], and by value whether the upper state before was cheaper."""
        n, states = metric.shape
        subsets = _branches(self, metric.device)
        decisions = []
        for distance in steps:
            # state t comes from t >> 1 and from t >> 1 with the highest bit set
            before = metric.view(n, 2, states // 2, 1).expand(n, 2, states // 2, 2).reshape(n, 2, states)
            lower, upper = (before + distance.index_select(1, subsets).view(n, 2, states)).unbind(1)
            decisions.append(upper < lower)
            metric = torch.minimum(lower, upper)
        return metric, decisions

    def _back(self, state: Tensor, decisions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The states [n] (int64) that paths to these came from, and the bits x [n, steps] on the way."""
        bits = []
        for decision in reversed(decisions):
            bits.append(state & 1)
            state = (state >> 1) + decision.gather(1, state[:, None])[:, 0] * (self.states // 2)
        return state, torch.stack(bits[::-1], dim=1)


@lru_cache(maxsize=16)
def _branches(trellis: Trellis, device: torch.device) -> Tensor:
    """The subsets on the way into each state, int64 [2 * states]: from the lower state before, then from the upper."""
    with torch.inference_mode(False):
        return torch.tensor([trellis.subset_of(t) for t in range(2 * trellis.states)], device=device)


# Number of states -> code
TRELLISES = {8: Trellis(0o13, 0o4), 64: Trellis(0o103, 0o24), 256: Trellis(0o515, 0o362)}
