"""A budget and what may be chosen within it: the allocator's side of a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stratakv.errors import UserError
from stratakv.pages.footprint import longest_context
from stratakv.profile import ModelGeometry, Profile
from stratakv.profile.profile import Pair
from stratakv.profile.spans import NONE
from stratakv.profile.spread import LayerSpans, fitted, layer_spans_text, of_each_layer
from stratakv.sizes import size_text
from stratakv.tune.allocate import Allocation, Table
from stratakv.tune.options import Damages, options_for, size_of

Pairs = tuple[Pair, ...]

_NEAR_BEST = 12  # pairs of a layer that a swap may bring in
_FRONT = 4096  # points that its slope is read from


@dataclass(frozen=True)
class Settled:
    """pairs: the assignment. tight: nothing else fits; otherwise nothing does less damage."""

    pairs: Pairs
    tight: bool


@dataclass(frozen=True)
class Problem:
    """budget: bytes a token, or, with a context, of one sequence of that many tokens. The constraints are `options_for`'s.

    spans: that all assignments have as far as they can, in all layers or by layer; counted with a context.
    """

    geometry: ModelGeometry
    budget: int
    context: int | None = None
    types: Collection[str] | None = None
    pairs: Collection[Pair] | None = None
    floors: Mapping[int, Pair] = field(default_factory=dict)
    spans: LayerSpans = NONE

    def table(self, damages: Damages) -> Table:
        """All budgets at once."""
        constraints = {"types": self.types, "pairs": self.pairs, "floors": self.floors, "context": self.context}
        return Table(options_for(self.geometry, damages, spans=self.spans, **constraints))  # type: ignore[arg-type]

    def solve(self, damages: Damages) -> Allocation:
        """The least damage within the budget."""
        return self.table(damages).solve(self.budget)

    def size(self, pairs: Sequence[Pair]) -> int:
        """Bytes of an assignment, in the budget's measure."""
        return sum(self._size(ordinal, pair) for ordinal, pair in enumerate(pairs))

    def _size(self, ordinal: int, pair: Pair) -> int:
        layers = self.geometry.kv_layers
        return size_of(layers[ordinal], pair, self.context, of_each_layer(self.spans, len(layers))[ordinal])

    def check(self) -> None:
        """UserError, with what to do, where not even the smallest of `types`, which have to be given, fit the budget."""
        smallest = self.smallest()
        size = self.size(smallest)
        if size <= self.budget:
            return
        if self.context is None:
            raise UserError(
                f"a budget of {self.budget:,} bytes a token is below the {size:,} that the smallest allowed types take: "
                "give more bytes, or allow smaller types"
            )
        bare = replace(self, spans=NONE)
        budget = f"{size_text(self.budget)} at {self.context:,} tokens"
        spans = layer_spans_text(self.spans)
        if self.spans and (without := bare.size(bare.smallest())) <= self.budget:
            raise UserError(
                f"the spans '{spans}' eat the budget of {budget}: the smallest allowed types take {size_text(size)} "
                f"with them, {size_text(without)} without: give fewer pages (--recent, --first), or {size_text(size)} or more"
            )
        profile = Profile("", self.geometry, smallest, spans=fitted(self.spans, self.geometry, smallest))
        longest = longest_context(profile, self.budget)
        shorter = f", or at most {longest:,} tokens" if longest else ""
        raise UserError(
            f"nothing fits {budget}: the smallest allowed types take {size_text(size)}: give that or more{shorter}, or allow "
            "smaller types"
        )

    def smallest(self) -> Pairs:
        """The fewest bytes of `types`, which have to be given, in every layer. UserError where a layer is left without any."""
        assert self.types is not None
        known = [{(k, v): 0.0 for k in self.types for v in self.types}] * len(self.geometry.kv_layers)
        return tuple(layer.pairs[layer.sizes.index(min(layer.sizes))] for layer in self.table(known).layers)

    def uniform(self, damages: Damages) -> Pair | None:
        """The pair of types that does the least damage of those that fit in every layer alike; None where none fits.

        Floors don't count: it is what to compare with.
        """
        common = set.intersection(*(set(known) for known in damages))
        fits = [pair for pair in common if self._allows(pair) and self.size([pair] * len(damages)) <= self.budget]
        return min(fits, key=lambda pair: (sum(known[pair] for known in damages), pair), default=None)

    def _allows(self, pair: Pair) -> bool:
        return (self.types is None or set(pair) <= set(self.types)) and (self.pairs is None or pair in self.pairs)

    def price(self, damages: Damages) -> float:
        """What a byte is worth near the budget, in nats: the slope of the Pareto front there."""
        front = self.table(damages).front(_FRONT)
        sizes = np.array([each.size for each in front])
        low = max(0, int(np.searchsorted(sizes, 0.97 * self.budget)) - 1)
        high = min(len(front) - 1, int(np.searchsorted(sizes, 1.03 * self.budget)))
        if high <= low:
            return 0.0
        return (front[low].cost - front[high].cost) / float(sizes[high] - sizes[low])

    def next_size(self, damages: Damages) -> int | None:
        """Bytes of the smallest assignment beyond the budget that does less damage than the best within it; None: none does."""
        found = self.table(damages).beyond(self.budget)
        return None if found is None else found.size

    def allowed(self, damages: Damages) -> list[dict[Pair, int]]:
        """Sizes of the pairs that each layer may have."""
        table = self.table(damages)
        return [dict(zip(layer.pairs, layer.sizes, strict=True)) for layer in table.layers]

    def allows(self, pairs: Sequence[Pair], damages: Damages) -> bool:
        """Whether an assignment is within the budget, and in every layer what the layer may have."""
        there = zip(pairs, self.allowed(damages), strict=True)
        return self.size(pairs) <= self.budget and all(pair in sizes for pair, sizes in there)

    def settled(self, damages: Damages) -> Settled | None:
        """The assignment where there is nothing to choose: the only one that fits, or the least damage of all fits. None
        where there is a choice. UserError where nothing fits."""
        table = self.table(damages)
        steps = [sorted(layer.sizes)[:2] for layer in table.layers]
        room = self.budget - sum(sizes[0] for sizes in steps)
        chosen = table.solve(self.budget)
        if all(len(sizes) == 1 or sizes[1] - sizes[0] > room for sizes in steps):
            return Settled(chosen.pairs, tight=True)
        least = sum(min(layer.costs) for layer in table.layers)
        return Settled(chosen.pairs, tight=False) if chosen.cost <= least + 1e-12 * abs(least) else None

    def neighbours(self, pairs: Pairs, damages: Damages, count: int) -> list[Pairs]:
        """The most promising assignments within the budget that differ in one layer, or in two that swap bytes."""
        price = self.price(damages)
        here = self.size(pairs)
        changes = []
        for i, sizes in enumerate(self.allowed(damages)):
            known, there = damages[i], pairs[i]
            size = self._size(i, there)
            near = sorted((p for p in sizes if p != there), key=lambda p: known[p] + price * sizes[p])[:_NEAR_BEST]
            changes += [(i, pair, sizes[pair] - size, known[pair] - known[there]) for pair in near]
        found: list[tuple[float, tuple[int, ...]]] = [
            (cost, (n,)) for n, (_, _, size, cost) in enumerate(changes) if here + size <= self.budget
        ]
        for n, (i, _, size, cost) in enumerate(changes):
            for m, (j, _, other_size, other_cost) in enumerate(changes[:n]):
                if i != j and here + size + other_size <= self.budget:
                    found.append((cost + other_cost, (m, n)))
        found.sort(key=lambda each: each[0])
        result = []
        for _, parts in found[:count]:
            changed = list(pairs)
            for n in parts:
                changed[changes[n][0]] = changes[n][1]
            result.append(tuple(changed))
        return result
