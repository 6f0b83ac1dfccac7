"""KLD of many profiles on the same contexts, each measured once: looked up in the store, else run and kept."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from stratakv.engine.load import LoadedModel
from stratakv.measure.divergence import Floats
from stratakv.profile import Profile
from stratakv.profile.profile import Pair, pair_text
from stratakv.profile.spans import NONE, Spans
from stratakv.profile.spread import LayerSpans, fitted, layer_spans_text
from stratakv.tune.forward import FORWARD_PASSES, forward_damage
from stratakv.tune.gradient import NotDifferentiableError, passes_of, span_damage
from stratakv.tune.replay import Replay, batch_size
from stratakv.tune.store import Store

Pairs = tuple[Pair, ...]
Report = Callable[[str, int, int], None]

_TRIED_TOKENS = 32
_REPLAYS_KEPT = 1 << 30  # bytes of predictions and layer outputs


@dataclass
class Cost:
    """What the results of a stage took when they were measured, in this run or an earlier one. tokens: of all passes."""

    seconds: float = 0.0
    passes: float = 0.0
    tokens: float = 0.0


@dataclass
class Measurer:
    """Measures on ids, int64 [contexts, context]. report: called with (stage, done, total). spans: of all profiles, as far as
    each can have them. say: told a line about what falls back. first: position of the first prediction that gradients are of,
    None for half a context.

    Contexts are run in batches that share one cache, of as many as the model's vocabulary allows.
    """

    loaded: LoadedModel
    ids: torch.Tensor
    store: Store
    report: Report = lambda stage, done, total: None
    spans: LayerSpans = NONE
    say: Callable[[str], None] = lambda line: None
    first: int | None = None
    costs: dict[str, Cost] = field(default_factory=dict)
    _stage: str = "other"
    _tokens: int | None = None
    _rough: bool = False
    _used: set[tuple[str, str]] = field(default_factory=set)
    _replays: OrderedDict[int, tuple[Replay, Pairs | None]] = field(default_factory=OrderedDict)

    @contextmanager
    def stage(self, name: str, passes: float | None = None, tokens: int | None = None) -> Iterator[None]:
        """Within, costs are those of this stage. passes: that it takes where nothing was measured before, said beforehand.
        tokens: of one, None for those of this measurer's contexts."""
        before, self._stage, self._tokens = (self._stage, self._tokens), name, tokens
        if passes:
            each = self._tokens_a_pass()
            seconds = passes * each * self._seconds_a_token()
            self.say(
                f"{name}: {math.ceil(passes):,} forward passes of {each:,} tokens at most, about {_rounded(seconds)}"
            )
        try:
            yield
        finally:
            self._stage, self._tokens = before

    def _tokens_a_pass(self) -> int:
        return self._tokens or self.ids.shape[1]

    def _seconds_a_token(self) -> float:
        """Of all that was measured, whose passes may be of other lengths, or else of a short pass."""
        tokens = sum(cost.tokens for cost in self.costs.values())
        if tokens:
            return sum(cost.seconds for cost in self.costs.values()) / tokens
        ids = self.ids[:1, :_TRIED_TOKENS].to(self.loaded.model.device)
        seconds = 0.0
        for _ in range(2):  # the first one prepares
            started = time.perf_counter()
            with torch.no_grad():
                self.loaded.model(input_ids=ids, use_cache=False)
            seconds = time.perf_counter() - started
        return seconds / ids.shape[1]

    def add_cost(self, stage: str, seconds: float, passes: float) -> None:
        """Count work that was done elsewhere."""
        cost = self.costs.setdefault(stage, Cost())
        cost.seconds += seconds
        cost.passes += passes
        cost.tokens += passes * self._tokens_a_pass()

    @property
    def batch(self) -> int:
        """Contexts in one batch."""
        return batch_size(self.loaded, self.ids.shape[1])

    def klds(
        self, profiles: Sequence[Pairs], batches: Sequence[int], around: Pairs | None = None, quiet: bool = False
    ) -> Floats:
        """Mean KLD against the f16 cache in nats, [profiles, contexts of these batches].

        around: the operating point that most of the profiles differ little from; what lies below the first difference is
        then not run again. Numbers don't depend on it. quiet: report nothing.
        """
        rows: list[list[Floats]] = [[] for _ in profiles]
        done, total = 0, len(profiles) * len(batches)
        for batch in batches:
            for row, pairs in zip(rows, profiles, strict=True):
                row.append(self._one(pairs, batch, around))
                done += 1
                if not quiet:
                    self.report(self._stage, done, total)
        return np.array([np.concatenate(row) for row in rows])

    def span_gradients(
        self, types: Sequence[str], contexts: Sequence[int], draws: int, spans: Sequence[Spans]
    ) -> Floats:
        """`span_damage` of each context: [contexts, spans, kv_layers, 2, types]. One pass is for all of `spans`."""
        found = []
        for done, index in enumerate(contexts):
            name = f"{index} {draws} {' '.join(types)} [{'] ['.join(each.text() for each in spans)}]"
            line = self.store.get("gradient", name)
            if line is None:
                started = time.perf_counter()
                damage, passes = self._damage(types, index, draws, spans)
                line = self._keep("gradient", name, {"damage": damage.tolist()}, started, passes)
            self._count("gradient", name, line)
            found.append(np.array(line["damage"]))
            self.report(self._stage, done + 1, len(contexts))
        return np.array(found)

    def _damage(self, types: Sequence[str], index: int, draws: int, spans: Sequence[Spans]) -> tuple[Floats, float]:
        """[spans, kv_layers, 2, types], and the forward passes that it took."""
        if not self._rough:
            try:
                return span_damage(self.loaded, self.ids[index], types, draws, index, spans, self.first), passes_of(
                    draws
                )
            except NotDifferentiableError as error:
                self._rough = True
                self.say(
                    f"this model can't be differentiated ({error}): layers are compared by forward passes alone, rougher"
                    + (", which don't see what spans save: --recent and --first set them" if any(spans) else "")
                )
        damage = forward_damage(self.loaded, self.ids[index], types)
        return np.broadcast_to(damage, (len(spans), *damage.shape)), FORWARD_PASSES

    def _one(self, pairs: Pairs, batch: int, around: Pairs | None) -> Floats:
        name = " ".join([str(batch), *map(pair_text, pairs), *([layer_spans_text(self.spans)] if self.spans else [])])
        line = self.store.get("kld", name)
        if line is None:
            started = time.perf_counter()
            replay = self._replay(batch, around)
            before = replay.passes
            kld = replay.kld(self._profile(pairs))
            line = self._keep("kld", name, {"kld": kld.tolist()}, started, replay.passes - before)
        self._count("kld", name, line)
        return np.array(line["kld"])

    def _replay(self, batch: int, around: Pairs | None) -> Replay:
        kept = self._replays.pop(batch, None)
        if kept is None:
            started = time.perf_counter()
            replay = Replay(self.loaded, self.ids[batch * self.batch : (batch + 1) * self.batch])
            self._spent(time.perf_counter() - started, replay.passes)
            while self._replays and (len(self._replays) + 1) * replay.nbytes > _REPLAYS_KEPT:
                self._replays.popitem(last=False)
            kept = replay, None
        replay, recorded = kept
        if around is not None and recorded != around:
            started, before = time.perf_counter(), replay.passes
            replay.record(self._profile(around))
            self._spent(time.perf_counter() - started, replay.passes - before)
            recorded = around
        self._replays[batch] = replay, recorded
        return replay

    def _profile(self, pairs: Pairs) -> Profile:
        geometry = self.loaded.geometry
        return Profile("candidate", geometry, pairs, spans=fitted(self.spans, geometry, pairs))

    def _keep(self, kind: str, name: str, value: dict[str, object], started: float, passes: float) -> dict[str, object]:
        spent = {"seconds": round(time.perf_counter() - started, 4), "passes": round(passes, 4)}
        return self.store.put(kind, name, {**value, **spent})

    def _count(self, kind: str, name: str, line: dict[str, object]) -> None:
        """A measurement that a resumed run finds in its file costs what it cost."""
        if (kind, name) not in self._used:
            self._used.add((kind, name))
            self._spent(float(line["seconds"]), float(line["passes"]))  # type: ignore[arg-type]

    def _spent(self, seconds: float, passes: float) -> None:
        self.add_cost(self._stage, seconds, passes)


def _rounded(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
