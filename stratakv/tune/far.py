"""Far predictions in the objective: the damage to a passage that is repeated long after, mixed with the damage to all text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Text, tokens_of
from stratakv.measure.far import FarContexts, copying, far_contexts
from stratakv.profile.spans import Spans
from stratakv.tune.sensitivity import Sensitivity
from stratakv.tune.split import SELECTED_SHARE

CONTEXTS = 1


def check_weight(weight: float, measures: bool) -> None:
    """UserError for a weight that can't be. measures: the effort corrects gradients by measurements, which are of all text."""
    if not 0 <= weight <= 1:
        raise UserError(f"--far {weight:g}: the weight of far predictions, 0 (none) to 1 (they alone)")
    if weight and measures:
        raise UserError(
            f"--far {weight:g} goes with --effort first: other efforts correct the gradients by measurements of all predictions"
        )


def far_for_tuning(loaded: LoadedModel, text: Text, context: int) -> FarContexts:
    """A far context from the part of the text that chooses, as `measure.far` makes them.

    context: tokens of the ordinary ones. UserError for a text or a model's context that is too short, and for a model that
    doesn't copy.
    """
    found = far_contexts(text, loaded.tokenizer, CONTEXTS, context=context, model_context=loaded.geometry.context)
    if not isinstance(found, FarContexts):
        raise UserError(f"{found.words}: leave --far out, or give a longer text")
    _, plain = tokens_of(text, loaded.tokenizer)
    if found.distance * CONTEXTS > SELECTED_SHARE * len(plain):
        raise UserError(
            f"the text {text.name} has {len(plain):,} tokens: a far context takes {found.distance:,} of its first two thirds: "
            "give a longer text, or leave --far out"
        )
    if not (copied := copying(loaded, found, found.context)).able:
        raise UserError(
            f"{loaded.name} doesn't copy, an f16 cache takes {copied.words}: it has no far predictions, leave --far out"
        )
    return found


def mixed(
    found: Mapping[Spans, Sensitivity], far: Mapping[Spans, Sensitivity], weight: float
) -> dict[Spans, Sensitivity]:
    """Each context's damage, of which so much is that of the far contexts' mean."""
    return {
        spans: replace(each, damage=(1 - weight) * each.damage + weight * far[spans].damage.mean(axis=0))
        for spans, each in found.items()
    }
