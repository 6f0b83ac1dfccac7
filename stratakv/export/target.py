"""What every target gives: the exact command for a profile, or the reason why there is none and the best profile that has one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.kvtypes.trellis import TrellisType
from stratakv.profile import ModelGeometry, Profile
from stratakv.profile.profile import Pair, ordinals_text
from stratakv.profile.spans import spans_text

# (KV ordinal, side: 0 for K and 1 for V, type) -> what it costs there; lower is better
Costs = Callable[[int, int, str], float]

Weights = Literal["gguf", "directory", "any"]  # a directory or hub name


class NotExpressible(Exception):  # noqa: N818 (an answer, not a fault)
    """The target can't say this profile; the message says what exactly, in one line."""


@dataclass(frozen=True)
class Command:
    """text: what to run, or a file's content. notes: what the reader has to know beside it, a sentence each."""

    text: str
    notes: tuple[str, ...] = ()


class Target(Protocol):
    """What a profile is exported to. title: what people call it. types: those of ours that it can store. weights: the files
    that it takes."""

    title: str
    types: tuple[str, ...]
    weights: Weights

    def command(self, profile: Profile, model: str) -> Command:
        """The command that gives each layer these types; model: how the runtime is told the model. Raises NotExpressible."""

    def nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """The pairs of least cost that the target can express within `budget` (padding counted); where nothing is so small, the
        smallest. Costs are asked for `types` only. Raises UserError where it can express nothing at all.
        """

    def bytes_per_token(self, profile: Profile) -> int:
        """What the target takes for these pairs."""


class Runtime(ABC):
    """Somebody else's runtime: none holds latents. By our types' arithmetic, where it has no other."""

    title: str
    types: tuple[str, ...]
    weights: Weights = "gguf"

    def command(self, profile: Profile, model: str) -> Command:
        """See Target."""
        _refuse_mla(profile.geometry, self.title)
        return self._command(profile, model)

    def nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """See Target."""
        _refuse_mla(profile.geometry, self.title)
        return self._nearest(profile, costs)

    def bytes_per_token(self, profile: Profile) -> int:
        """See Target."""
        return profile.bytes_per_token

    @abstractmethod
    def _command(self, profile: Profile, model: str) -> Command:
        """As `command`, of a model with K and V."""

    @abstractmethod
    def _nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """As `nearest`, of a model with K and V."""

    def _check_types(self, profile: Profile, which: str = "only") -> None:
        """Raises NotExpressible where the profile has types that are not among its own."""
        found: dict[str, list[int]] = {}
        for ordinal, pair in enumerate(profile.pairs):
            for side, name in zip("KV", pair, strict=True):
                if name not in self.types:
                    found.setdefault(f"{side} {name}", []).append(ordinal)
        if found:
            alone = any(isinstance(kv_type(words.split()[1]), TrellisType) for words in found)
            ours = "; trellis types are stratakv's alone" if alone else ""
            raise NotExpressible(f"it has no type for {in_layers(found)} ({which} {', '.join(self.types)}{ours})")


def budget(profile: Profile) -> int:
    """Bytes a token that an offer may take: the profile's and 1 % more, since a tuned profile lies just below a round size."""
    return profile.bytes_per_token * 101 // 100


def lost_spans(profile: Profile, title: str) -> list[str]:
    """What other runtimes lose of a profile with spans, as a note; [] where there is nothing to lose."""
    text = spans_text(profile.spans)
    return [f"{title} has no spans: '{text}' is lost, all pages are in the layers' own types there"] if text else []


def in_layers(found: Mapping[str, Iterable[int]]) -> str:
    """'K turbo5 in KV layer 10, V turbo3 in KV layers 1-4'."""
    parts = []
    for words, ordinals in found.items():
        numbers = ordinals_text(ordinals)
        parts.append(f"{words} in KV layer{'' if numbers.isdigit() else 's'} {numbers}")
    return ", ".join(parts)


def storable(names: Iterable[str], geometry: ModelGeometry) -> list[str]:
    """The types that every layer's K and V can be stored in. Raises UserError when none is left."""
    found = []
    for name in names:
        try:
            Profile(name, geometry, ((name, name),) * len(geometry.kv_layers))
        except UserError:
            continue
        found.append(name)
    if not found:
        raise UserError(f"none of the types {', '.join(names)} can store the head dims of {geometry.name}")
    return found


def _refuse_mla(geometry: ModelGeometry, title: str) -> None:
    """Raises UserError for models that cache latents: other runtimes hold them as one vector without a V of its own."""
    if any(layer.role == "mla" for layer in geometry.kv_layers):
        raise UserError(
            f"{geometry.name} caches latents (MLA): {title} has no K and V of a layer that types could be given to"
        )
