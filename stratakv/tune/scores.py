"""Scores by token as `measure` gives them, each profile and context kept in the store: a killed comparison goes on."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from stratakv.engine.load import LoadedModel
from stratakv.measure.corpus import Contexts
from stratakv.measure.run import Progress, Scores, measure
from stratakv.profile import Profile
from stratakv.profile.profile import pair_text
from stratakv.tune.store import Store

_BASELINE = "f16 cache"


def kept_scores(
    loaded: LoadedModel,
    contexts: Contexts,
    profiles: Sequence[Profile],
    store: Store,
    *,
    batch: int,
    progress: Progress = lambda done, total: None,
) -> tuple[Scores, list[Scores]]:
    """(baseline, one Scores a profile), the same numbers as `measure`'s; what the store has is not run again.

    store: of this model, text and cut. progress: called with (passes done, passes in all) after each pass; what the store has
    counts as done.
    """
    of_each = passes(profiles)
    total = len(contexts.ids) * of_each
    for index in range(len(contexts.ids)):
        missing = [profile for profile in profiles if store.get("score", _name(index, profile)) is None]
        missing = list({profile.storages: profile for profile in missing}.values())
        has_baseline = store.get("score", f"{index} {_BASELINE}") is not None
        if missing or not has_baseline:
            one = replace(contexts, ids=contexts.ids[index : index + 1])
            at = (index + 1) * of_each - len(missing) - 1
            baseline, scores = measure(loaded, one, missing, batch=batch, progress=partial(_from, at, total, progress))
            if not has_baseline:
                store.put("score", f"{index} {_BASELINE}", _packed(baseline))
            for profile, each in zip(missing, scores, strict=True):
                store.put("score", _name(index, profile), _packed(each))
        else:
            progress((index + 1) * of_each, total)
    names = [[f"{index} {_BASELINE}" for index in range(len(contexts.ids))]]
    names += [[_name(index, profile) for index in range(len(contexts.ids))] for profile in profiles]
    baseline, *rest = [_joined([store.get("score", name) or {} for name in row]) for row in names]
    return baseline, rest


def passes(profiles: Sequence[Profile]) -> int:
    """Over each context: one of the f16 cache, and one for each way of storing."""
    return 1 + len({profile.storages for profile in profiles})


def _from(before: int, total: int, progress: Progress, done: int, _: int) -> None:
    progress(before + done, total)


def _name(index: int, profile: Profile) -> str:
    spans = " ".join(f"[{each.in_clause()}]" if each else "-" for each in profile.spans) if any(profile.spans) else ""
    return f"{index} {' '.join(map(pair_text, profile.pairs))} {spans}".rstrip()


def _packed(scores: Scores) -> dict[str, Any]:
    kld = None if scores.kld is None else _text(scores.kld[0])
    agree = None if scores.agree is None else _text(np.packbits(scores.agree[0]))
    return {
        "nll": _text(scores.nll[0]),
        "kld": kld,
        "agree": agree,
        "allocated": scores.allocated,
        "seconds": scores.seconds,
    }


def _joined(lines: Sequence[dict[str, Any]]) -> Scores:
    nll = np.stack([_array(line["nll"], np.float64) for line in lines])
    kld = agree = None
    if lines[0]["kld"] is not None:
        kld = np.stack([_array(line["kld"], np.float64) for line in lines])
        bits = [np.unpackbits(_array(line["agree"], np.uint8), count=nll.shape[1]) for line in lines]
        agree = np.stack(bits).astype(np.bool_)
    return Scores(nll, kld, agree, lines[-1]["allocated"], sum(line["seconds"] for line in lines))


def _text(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _array(text: str, dtype: Any) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)
