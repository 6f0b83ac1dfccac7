"""Spans: the newest pages of a sequence and its first ones, stored in a finer type than the rest.

A token at position p sees fine the first `first` pages of its sequence and the pages b - recent to b, the one that p is in.
Everything between is sealed: stored in the layer's own types. The rule asks for positions alone, never for how a prompt was cut.

    page      0        1        2    ...   b - 2    b - 1      b
              fine     sealed   sealed     sealed   fine      fine    first 1, recent 1
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type

PAGE_TOKENS = 128
DEFAULT_TYPE = "turbo8"
Sizes = dict[str, tuple[int, str]]  # recent and first, those that are said: pages and type


@dataclass(frozen=True)
class Spans:
    """The finer pages of one layer; none where both numbers are 0.

    recent: pages before a token's own that it sees fine, beside its own. first: pages from the sequence's begin. Both are of
    one type in this version. UserError for what can't be.
    """

    recent: int = 0
    recent_type: str = DEFAULT_TYPE
    first: int = 0
    first_type: str = DEFAULT_TYPE

    def __post_init__(self) -> None:
        for word, pages, type_ in self._parts():
            kv_type(type_)
            if pages < 0:
                raise UserError(f"{word}: {pages} pages: give 0 (none) or more")
            if not pages and type_ != DEFAULT_TYPE:
                raise UserError(
                    f"{word}: 0 pages have no type, {type_} is given: leave the type out, or give 1 page or more"
                )
        if self.recent and self.first and self.recent_type != self.first_type:
            raise UserError(
                f"recent pages in {self.recent_type} and first pages in {self.first_type}: both spans of a layer are of "
                f"one type, {DEFAULT_TYPE} where none is said: say the same for both"
            )

    def __bool__(self) -> bool:
        return self.recent > 0 or self.first > 0

    @property
    def type(self) -> str:
        """The finer type of both spans."""
        return self.recent_type if self.recent else self.first_type

    @property
    def pages(self) -> int:
        """The most fine pages of one sequence, the page of its newest token among them."""
        return self.first + self.recent + 1 if self else 0

    def sealed(self, tokens: int) -> range:
        """The pages that the last of so many tokens sees sealed: all but the fine ones, which may be none or all."""
        pages = -(-tokens // PAGE_TOKENS)
        start = min(self.first, pages)
        return range(start, max(start, pages - 1 - self.recent)) if self else range(pages)

    def having(self, sizes: Mapping[str, tuple[int, str]]) -> Spans:
        """The same with those of `sizes` (see Sizes) instead."""
        changes: dict[str, Any] = {}
        for word, (pages, type_) in sizes.items():
            changes |= {word: pages, f"{word}_type": type_}
        return replace(self, **changes)

    def text(self) -> str:
        """As a rule line says it of a whole profile: 'recent: 2 pages turbo8; first: 1 page turbo8'; '' for none."""
        return "; ".join(f"{word}: {size_text(n, t)}" for word, n, t in self._parts() if n)

    def in_clause(self) -> str:
        """As a layer's clause says it: 'recent 2 pages turbo8, first 0 pages'."""
        return ", ".join(f"{word} {size_text(n, t)}" for word, n, t in self._parts())

    def to_json(self) -> dict[str, Any] | None:
        """An object with the four fields; None for none."""
        return asdict(self) if self else None

    def _parts(self) -> tuple[tuple[str, int, str], tuple[str, int, str]]:
        return ("recent", self.recent, self.recent_type), ("first", self.first, self.first_type)


NONE = Spans()


def size_text(pages: int, type_: str) -> str:
    """'2 pages turbo8', '1 page turbo8', '0 pages'."""
    return f"{pages} page{'' if pages == 1 else 's'}" + (f" {type_}" if pages else "")


def parse_size(pages: str, type_: str | None) -> tuple[int, str]:
    """Number and type of a span from their texts; None: no type is said. Raises UserError."""
    if not re.fullmatch(r"\d{1,9}", pages):
        raise UserError(f"{pages!r} is no number of pages: give 0 (none) or more pages of {PAGE_TOKENS} tokens")
    if not int(pages) and type_ is not None:
        raise UserError(f"0 pages of {type_}: leave the type out for no pages, or give 1 page or more")
    return int(pages), DEFAULT_TYPE if type_ is None else kv_type(type_).name


def spans_text(spans: Sequence[Spans]) -> str:
    """The spans of all layers in one phrase: Spans.text of those that most layers have, and how many have others."""
    have = [each for each in spans if each]
    if not have:
        return ""
    most = max(dict.fromkeys(have), key=have.count)
    others = len(spans) - len([each for each in spans if each == most])
    return most.text() + (f" ({others} of {len(spans)} layers have others or none)" if others else "")
