"""An effort of tuning that measures next to nothing: every stage runs, no number means much."""

from __future__ import annotations

from stratakv.tune.effort import Effort

TINY = Effort(
    gradient_contexts=2,
    draws=1,
    ablated_types=1,
    ablation_batches=1,
    designed=4,
    drawn=1,
    search_batches=1,
    swaps=1,
    neighbours=1,
    validate_contexts=4,
)
