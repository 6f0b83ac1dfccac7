"""How much is measured: three sizes of the same work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Counts. gradient_contexts, draws: of the gradient. ablated_types: how many types every cell is measured with, in
    ablation_batches. pairs: a layer's pairs measured together. rounds: of solving and re-measuring, with `drawn` random
    candidates and `alternatives` pairs a layer. swaps: steps of local search with `neighbours` each. Batches are of
    `Measurer.batch` contexts. fidelity: random assignments, each on fidelity_contexts. validate_contexts: for the tuning's own
    report."""

    gradient_contexts: int
    draws: int
    ablated_types: int
    ablation_batches: int
    pairs: int
    rounds: int
    drawn: int
    alternatives: int
    remeasure_batches: int
    search_batches: int
    swaps: int
    neighbours: int
    fidelity: int
    fidelity_contexts: int
    validate_contexts: int


EFFORTS = {
    "quick": Effort(8, 2, 2, 1, 0, 1, 5, 2, 1, 2, 1, 8, 100, 1, 12),
    "normal": Effort(16, 2, 3, 2, 1, 2, 8, 3, 2, 4, 2, 12, 100, 2, 16),
    "full": Effort(32, 2, 8, 4, 4, 3, 16, 6, 4, 8, 4, 24, 200, 8, 32),
}
