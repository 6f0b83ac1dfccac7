"""What of a text a tuning reads: the part that chooses, the part that checks the choice, and where their measurements lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.kvtypes import kv_type, type_names
from stratakv.measure.corpus import Contexts
from stratakv.measure.rows import METRICS_VERSION
from stratakv.tune.effort import Effort
from stratakv.tune.store import Store

SELECTED_SHARE = 2 / 3
MIN_CONTEXTS = 6


@dataclass(frozen=True)
class Split:
    """The tuning text's contexts: those that the choice sees, in batches spread over the text, and later ones that it doesn't."""

    select: torch.Tensor
    validate: Contexts


def split_contexts(contexts: Contexts, effort: Effort) -> Split:
    """The first two thirds for choosing, in an order that spreads any first few over all of them; of the rest as many as
    the effort validates with. Raises UserError for a text of fewer than MIN_CONTEXTS contexts."""
    there = len(contexts.ids)
    if there < MIN_CONTEXTS:
        raise UserError(
            f"the text {contexts.text.name} has {there} contexts of {contexts.context} tokens, tuning needs at least "
            f"{MIN_CONTEXTS}: give a longer text with --text, or a smaller -c"
        )
    first = int(there * SELECTED_SHARE)
    order = sorted(range(first), key=_bits_reversed)
    rest = np.unique(np.linspace(first, there - 1, min(effort.validate_contexts, there - first)).round().astype(int))
    return Split(contexts.ids[order], replace(contexts, ids=contexts.ids[rest]))


def open_store(loaded: LoadedModel, contexts: Contexts, runs: Path, part: str) -> Store:
    """The measurements of this model on this cut of this text; those of another kind of device are others."""
    device = loaded.model.device.type
    return Store(
        runs,
        {
            "model": loaded.fingerprint,
            "text": contexts.text.sha256,
            "context": contexts.context,
            "part": part,
            "dtype": str(loaded.model.dtype),
            **({} if device == "cpu" else {"device": device}),
            "metrics": METRICS_VERSION,
            "types": {name: kv_type(name).version for name in type_names()},
        },
    )


def _bits_reversed(index: int) -> int:
    return int(f"{index:016b}"[::-1], 2)
