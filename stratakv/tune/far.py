"""Far predictions in the objective: the damage to a passage that is repeated long after, mixed with the damage to all text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Text, tokens_of
from stratakv.measure.far import COPYING_PASSES, FarContexts, copying, far_contexts
from stratakv.profile.spans import Spans
from stratakv.tune.measurer import Measurer
from stratakv.tune.sensitivity import Sensitivity
from stratakv.tune.split import SELECTED_SHARE

CONTEXTS = 1
USUAL = 0.25
STAGE = "far predictions, whether there are any"


def weight_of(given: float | None, *, long: bool, measures: bool) -> float:
    """The weight of far predictions: the given one; None: USUAL where a cache of a long context is asked for.

    long: whether the budget names a context. measures: the effort corrects gradients by measurements, which are of all
    predictions, so that far ones can't count. UserError for a weight that can't be.
    """
    if given is None:
        return USUAL if long and not measures else 0.0
    if not 0 <= given <= 1:
        raise UserError(f"--far {given:g}: the weight of far predictions, 0 (none) to 1 (they alone)")
    if given and measures:
        raise UserError(
            f"--far {given:g} goes with --effort first: other efforts correct the gradients by measurements of all predictions"
        )
    return given


def far_for_tuning(loaded: LoadedModel, text: Text, context: int, measurer: Measurer) -> FarContexts | str:
    """A far context from the part of the text that chooses, as `measure.far` makes them; or why there is none.

    context: tokens of the ordinary ones. measurer: told what it takes to see whether the model copies.
    """
    found = far_contexts(text, loaded.tokenizer, CONTEXTS, context=context, model_context=loaded.geometry.context)
    if not isinstance(found, FarContexts):
        return found.words
    _, plain = tokens_of(text, loaded.tokenizer)
    if found.distance * CONTEXTS > SELECTED_SHARE * len(plain):
        return f"the text {text.name} has {len(plain):,} tokens, a far context takes {found.distance:,} of its first two thirds"
    with measurer.stage(STAGE, COPYING_PASSES, found.context):
        started = time.perf_counter()
        copied = copying(loaded, found, found.context)
        measurer.add_cost(STAGE, time.perf_counter() - started, COPYING_PASSES)
    if not copied.able:
        return f"{loaded.name} doesn't copy, an f16 cache takes {copied.words}"
    return found


def mixed(
    found: Mapping[Spans, Sensitivity], far: Mapping[Spans, Sensitivity], weight: float
) -> dict[Spans, Sensitivity]:
    """Each context's damage, of which so much is that of the far contexts' mean."""
    return {
        spans: replace(each, damage=(1 - weight) * each.damage + weight * far[spans].damage.mean(axis=0))
        for spans, each in found.items()
    }
