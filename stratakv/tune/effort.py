"""How much is measured: a first profile from gradients alone, and three sizes of the whole work that go on from there."""

from __future__ import annotations

from dataclasses import dataclass, replace

USUAL_CONTEXT = 512  # tokens


@dataclass(frozen=True)
class Effort:
    """Counts. gradient_contexts, draws: of the gradient, at USUAL_CONTEXT tokens. ablated_types: how many types every cell is
    measured with, in ablation_batches. designed: random assignments that correct the gradients, a batch each. drawn: candidates
    beside the solution, compared in search_batches (0: the predictions' solution is taken unmeasured). swaps: steps of local
    search with `neighbours` each. Batches are of `Measurer.batch` contexts. validate_contexts: for the tuning's own report."""

    gradient_contexts: int
    draws: int
    ablated_types: int
    ablation_batches: int
    designed: int
    drawn: int
    search_batches: int
    swaps: int
    neighbours: int
    validate_contexts: int

    def at(self, context: int) -> Effort:
        """The same in contexts of so many tokens: gradients see about as many tokens, in 1 to 4 times as many contexts."""
        contexts = self.gradient_contexts * USUAL_CONTEXT // context
        return replace(self, gradient_contexts=max(1, min(contexts, 4 * self.gradient_contexts)))


EFFORTS = {
    "first": Effort(2, 1, 0, 0, 0, 0, 0, 0, 0, 4),
    "quick": Effort(8, 2, 2, 1, 200, 4, 4, 0, 0, 12),
    "normal": Effort(16, 2, 3, 2, 500, 8, 12, 1, 8, 24),
    "full": Effort(32, 2, 6, 4, 1500, 16, 24, 3, 16, 48),
}
