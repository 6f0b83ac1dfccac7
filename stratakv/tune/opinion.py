"""The second opinion: a few true measurements on text that nothing was chosen on say in one line what the user gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Contexts
from stratakv.measure.divergence import Floats
from stratakv.measure.intervals import MIN_BLOCKS, change_interval, mean_interval
from stratakv.measure.rows import quality_rows
from stratakv.measure.table import milli
from stratakv.measure.verdicts import kld_in_words
from stratakv.profile import Profile, resolve
from stratakv.profile.profile import pair_text
from stratakv.profile.spans import NONE
from stratakv.tune.baselines import TURBO, spanned
from stratakv.tune.effort import Effort
from stratakv.tune.measurer import Measurer
from stratakv.tune.problem import Problem
from stratakv.tune.scores import kept_scores
from stratakv.tune.scores import passes as passes_over_each
from stratakv.tune.split import open_store
from stratakv.weights.exact import exact_products

PASSES = 4
FEWEST = 3  # a context through f16, the profile, and what it is compared with
BLOCK = 32  # predictions of a block, where there are too few contexts for an interval over them
COMPARED = ("turbo2", "turbo3", "turbo4", "turbo5", "tcq3", "tcq4", "q4_0_rot", "q8_0", "edges3", "mode7")


@dataclass(frozen=True)
class Opinion:
    """How much is measured. contexts: 0 for nothing. third: the largest turbo type in the budget too. wide: and COMPARED."""

    contexts: int
    third: bool
    wide: bool = False

    @staticmethod
    def of(passes: int | None, effort: Effort) -> Opinion:
        """At most so many forward passes, 0 for none; None: PASSES, or with an effort that measures its own contexts, and wide.

        UserError for too few.
        """
        if passes is None and effort.search_batches:
            return Opinion(effort.validate_contexts, third=True, wide=True)
        passes = PASSES if passes is None else passes
        if passes < 0 or 0 < passes < FEWEST:
            raise UserError(
                f"--second-opinion {passes}: at least {FEWEST} forward passes (f16, the profile, the best uniform pair), or 0 "
                "for none"
            )
        contexts = passes // FEWEST
        return Opinion(contexts, third=0 < contexts <= passes - FEWEST * contexts)

    def warnings(self, there: int) -> list[str]:
        """Where the text spares fewer contexts than the user asked for."""
        if self.wide or there >= self.contexts:
            return []
        return [
            f"the second opinion is of {there} contexts, not {self.contexts}: the text has no more that nothing was chosen on"
        ]

    def measured(
        self,
        loaded: LoadedModel,
        contexts: Contexts,
        runs: Path,
        found: Sequence[Profile],
        problem: Problem,
        measurer: Measurer,
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(compare/1 rows; the evidence's field "second_opinion").

        Products of packed weights are exact, as in `compare`: rounding activations does more than fine types.
        contexts: that nothing was chosen on. runs: where scores are kept. found: the profile, and the best uniform pair, which
        may be the same.
        """
        if not self.contexts:
            return [], NONE_ASKED
        profile, reference = found
        beside = [each for each in self._beside(reference, problem) if each.storages not in {p.storages for p in found}]
        profiles = [*found, *{each.storages: each for each in beside}.values()]
        store = open_store(loaded, contexts, runs, f"validate exactly {len(contexts.ids)}")
        passes = len(contexts.ids) * passes_over_each(profiles)
        with measurer.stage("second opinion", passes), exact_products(loaded.model, head=True):
            baseline, scores = kept_scores(
                loaded,
                contexts,
                profiles,
                store,
                batch=contexts.context,
                progress=lambda done, total: measurer.report("second opinion", done, total),
            )
        store.close()
        seconds = baseline.seconds + sum(each.seconds for each in scores)
        measurer.add_cost("second opinion", seconds, passes)
        klds = {each.storages: score.kld for each, score in zip(profiles, scores, strict=True) if score.kld is not None}
        against = {}
        if reference.storages != profile.storages:
            against[reference.name] = ("the best uniform pair in this budget", klds[reference.storages])
        if (plain := _plain(problem)) and plain.storages in klds and plain.storages not in {p.storages for p in found}:
            against[plain.name] = ("the largest uniform turbo type in it", klds[plain.storages])
        opinion = second_opinion(klds[profile.storages], against, contexts.context, passes)
        return quality_rows(profiles, scores, baseline, 1, contexts.context), opinion

    def _beside(self, reference: Profile, problem: Problem) -> list[Profile]:
        """What the profile is compared with, beside the best uniform pair."""
        plain = _plain(problem)
        beside = [plain] if plain and self.third else []
        if not self.wide:
            return beside
        if any(reference.spans):
            beside.append(replace(reference, name=pair_text(reference.pairs[0]), spans=()))
        for text in COMPARED:
            try:
                beside.append(spanned(resolve(text, problem.geometry), problem.spans))
            except UserError:
                continue  # a type that this model can't store
        return beside


def second_opinion(kld: Floats, against: Mapping[str, tuple[str, Floats]], context: int, passes: int) -> dict[str, Any]:
    """What a profile gives, alone and against others; fields: docs/tuning.md, `words` is one line.

    kld: nats [contexts, predictions]. against: by name what the other is, and its KLD of the same predictions. context: tokens
    of one. passes: what was spent.
    """
    over = "contexts" if len(kld) >= MIN_BLOCKS else "blocks"
    parts = _parts(kld)
    interval = mean_interval(parts)
    compared = [{"name": name, "what": what, **_change(kld, other)} for name, (what, other) in against.items()]
    ends = "" if interval is None else f" [{milli(interval[0])}, {milli(interval[1])}]"
    words = [f"KLD {milli(float(kld.mean()))}{ends} e-3 nats", *map(_in_words, compared)]
    read = f"{passes} forward passes, {len(kld)} context{'s' * (len(kld) > 1)} of {context:,} tokens that nothing was chosen on"
    if over == "blocks":
        read += f"; intervals over blocks of {_size(kld)} predictions, other text may differ more"
    return {
        "passes": passes,
        "contexts": len(kld),
        "context": context,
        "predictions": kld.size,
        "kld": float(kld.mean()),
        "kld_ci95": None if interval is None else list(interval),
        "over": over,
        "blocks": len(parts),
        "against": compared,
        "words": f"{'; '.join(words)} ({read})",
    }


def doubts_in_words(name: str, opinion: Mapping[str, Any]) -> list[str]:
    """A warning where a profile of that name is worse than the best uniform pair, or not shown to be better.

    opinion: of `second_opinion`.
    """
    if not opinion["against"] or (against := opinion["against"][0])["kind"] == "better":
        return []
    passes = max(FEWEST * MIN_BLOCKS, 2 * opinion["passes"])
    more = (
        f"measure more (--second-opinion {passes} shows smaller differences, a higher --effort finds better profiles)"
    )
    found, advice = (
        ("worse than", f"take that, or {more}") if against["kind"] == "worse" else ("not shown to be better than", more)
    )
    return [f"on text that the choice didn't see, {name} is {found} {against['name']}, {against['what']}: {advice}"]


NONE_ASKED: dict[str, Any] = {
    "passes": 0,
    "contexts": 0,
    "against": [],
    "words": "none (--second-opinion 0): this profile was not measured, its numbers are predictions",
}


def _plain(problem: Problem) -> Profile | None:
    """The largest uniform turbo type without spans in the budget, what users have without tuning; None where none fits."""
    bare = replace(problem, spans=NONE)
    fits = []
    for name in TURBO:
        try:
            profile = resolve(name, problem.geometry)
        except UserError:
            continue  # a type that this model can't store
        if bare.size(profile.pairs) <= problem.budget:
            fits.append(profile)
    return fits[-1] if fits else None


def _change(kld: Floats, other: Floats) -> dict[str, Any]:
    if other.mean() <= 0:
        return {"kld": 0.0, "change": 0.0, "change_ci95": None, "kind": "not shown"}
    change, interval = float(kld.mean() / other.mean()) - 1, change_interval(_parts(kld), _parts(other))
    open_ = interval is None or interval[0] <= 0 <= interval[1]
    return {
        "kld": float(other.mean()),
        "change": change,
        "change_ci95": None if interval is None else list(interval),
        "kind": "not shown" if open_ else "better" if change < 0 else "worse",
    }


def _in_words(each: Mapping[str, Any]) -> str:
    size = kld_in_words(each["change"], each["change_ci95"], 1.0).removeprefix("KLD ")
    whom = f"against {each['name']}, {each['what']}"
    if each["kind"] == "not shown" and each["change_ci95"] is not None:
        return f"no difference shown {whom} ({size})"
    return f"{size} {whom}"


def _parts(kld: Floats) -> Floats:
    """Means of contexts where there are enough for an interval, else of blocks of predictions within them: [parts].

    The last predictions of a context that fill no block are left out.
    """
    if len(kld) >= MIN_BLOCKS:
        return np.asarray(kld.mean(axis=1))
    size = _size(kld)
    count = kld.shape[1] // size
    return np.asarray(kld[:, : count * size].reshape(-1, size).mean(axis=1))


def _size(kld: Floats) -> int:
    """Predictions of a block: fewer where a context has not enough for an interval."""
    return max(1, min(BLOCK, int(kld.shape[1]) // MIN_BLOCKS))
