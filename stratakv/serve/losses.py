"""What a server lacks with this model on this machine, each with its reason: said at the start, in answers, on the page."""

from __future__ import annotations

from stratakv.kernels.choice import TORCH, kernel_for, order_of, why_torch
from stratakv.pages.layout import layout_of
from stratakv.profile import Profile
from stratakv.serve.grammar import Grammars
from stratakv.serve.groups import WindowGroup
from stratakv.serve.request import Loss
from stratakv.serve.runner import BatchedRunner, SeparateRunner


def losses(
    runner: BatchedRunner | SeparateRunner,
    groups: list[WindowGroup],
    profile: Profile,
    grammars: Grammars,
) -> tuple[Loss, ...]:
    """Every loss of an engine, the gravest first."""
    found = []
    if isinstance(runner, SeparateRunner):
        found += [
            Loss("batching", f"each sequence takes a forward call of its own: {runner.why}"),
            Loss("prefix reuse", "no batching, so no shared pages: every prompt is computed from its first token"),
            Loss("saved slots", "no batching, so no shared pages that could be saved"),
        ]
        if not runner.in_pieces:
            why = "transformers reads this model's prompts right only as a whole: other requests wait while one is computed"
            found.append(Loss("prompts in pieces", why))
    slow, reasons = set[int](), list[str]()
    for group in groups:
        for ordinal, layer in group.layers:
            layout = layout_of(layer, group.storage(profile, ordinal), order_of(runner.device))
            if kernel_for(layout, runner.device) is TORCH:
                slow.add(layer.layer)
                reasons.append(why_torch(layout, runner.device))
    if slow:
        which = f"layer {min(slow)}" if len(slow) == 1 else f"{len(slow)} layers"
        why = "; ".join(dict.fromkeys(reasons))
        found.append(
            Loss("compiled kernels", f"{which} read and write the cache in plain torch, many times slower ({why})")
        )
    if (problem := grammars.unavailable()) is not None:
        found.append(Loss("grammars", problem))
    return tuple(found)
