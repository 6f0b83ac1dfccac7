"""Any profile text -> Profile: a type, K/V, a mode, a rule line, a preset, a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from stratakv.errors import UserError
from stratakv.kvtypes import type_names
from stratakv.profile.files import load_profile
from stratakv.profile.geometry import ModelGeometry
from stratakv.profile.modes import MODES, apply_mode, fork_pairs
from stratakv.profile.presets import PRESETS
from stratakv.profile.profile import Pair, Profile, pair_text
from stratakv.profile.rules import SPAN_CLAUSE, apply_rules, parse_pair, parse_rules, rule_line, whole_sizes
from stratakv.profile.spans import Sizes, Spans
from stratakv.profile.spread import spread_each
from stratakv.sizes import size_text

MODE_BASE: Pair = ("turbo4", "turbo4")
DEFAULT_SPANS: Sizes = {
    "recent": (1, "turbo8"),
    "first": (1, "turbo8"),
}  # of commands that use a cache, see `with_default_spans`
_MANY_TOKENS = 2**20  # beyond all spans
_MODE = re.compile(r"mode(-?\d+)(?:@(.*))?", re.DOTALL)


def resolve(
    text: str,
    geometry: ModelGeometry,
    *,
    base: Pair | None = None,
    compat_fork: bool = False,
    fingerprint: str | None = None,
) -> Profile:
    """The profile that a text means on this model.

    text: a path ending in .json, a preset's name, modeN (over base, else turbo4/turbo4) or modeN@K/V, a rule line (it
    has a ':'), TYPE, or K/V; and after each of them spans, as in 'turbo4; recent: 2 pages turbo8; first: 1 page turbo8'.
    base: the -ctk and -ctv types under a rule line or a mode; the other texts name every layer's types themselves.
    compat_fork: a mode or a type pair is assigned as the llama.cpp fork does it, TURBO_AUTO_ASYMMETRIC in the environment
    included. fingerprint: of the shapes of the model's weights, checked against a file's.
    Raises UserError for a text that means nothing, and for whatever does not fit the model.
    """
    text = text.strip()
    if (head := _head(text)) != text and not is_rule_line(text):
        profile = resolve(head, geometry, base=base, compat_fork=compat_fork, fingerprint=fingerprint)
        return respanned(profile, whole_sizes(parse_rules(text.removeprefix(head))))
    mode = _MODE.fullmatch(text)
    if not (is_rule_line(text) or text in PRESETS or mode or text.endswith(".json") or _looks_like_types(text)):
        parts = [part.strip() for part in text.split(";")]
        if bare := next((part for part in parts if re.match(r"(recent|first)\b(?!\s*:)", part)), None):
            raise UserError(
                f"profile {text!r}: {bare!r} lacks its ':': write 'recent: 2 pages' or 'first: 1 page turbo8'"
            )
        raise UserError(f"unknown profile {text!r}: {_possible()}")
    if compat_fork and (is_rule_line(text) or text in PRESETS or text.endswith(".json")):
        raise UserError(f"the fork cannot express {text!r}, only K and V types and modes: leave --compat fork out")
    if text.endswith(".json"):
        return load_profile(text, geometry, fingerprint)

    name = text
    spans: tuple[Spans, ...] = ()
    if text in PRESETS:
        pairs, spans, warnings = apply_rules(PRESETS[text].line, geometry)
    elif is_rule_line(text):
        pairs, spans, warnings = apply_rules(text, geometry, base)
    else:
        number, given = (int(mode[1]), mode[2]) if mode else (None, text)
        types = parse_pair(given) if given is not None else base or MODE_BASE
        name = pair_text(types) if number is None else _mode_name(number, types)
        if compat_fork:
            name = f"{name} as the fork"
            pairs, warnings = fork_pairs(number, geometry, types, os.environ)
        else:
            pairs, warnings = apply_mode(number or 0, geometry, types)
    return Profile(name, geometry, pairs, warnings, fingerprint, compat_fork=compat_fork, spans=spans)


def respanned(profile: Profile, sizes: Sizes) -> Profile:
    """The profile with these spans instead of its own in every layer, as far as each can have them; warnings say which can't.

    UserError for the fork's profiles, which have none, and where no layer can have any of them.
    """
    if not sizes:
        return profile
    if profile.compat_fork and any(pages for pages, _ in sizes.values()):
        raise UserError("the fork has no spans: leave recent and first pages out with --compat fork")
    geometry, pairs = profile.geometry, profile.pairs
    spans, fewer = spread_each([each.having(sizes) for each in profile.spans], geometry, pairs)
    if is_rule_line(profile.name):
        name = rule_line(pairs, spans, geometry)
    else:
        most = max(spans, key=lambda each: each.pages)
        name = "; ".join(filter(None, (_head(profile.name), most.text())))
        name += "; no spans" if name == profile.name and spans != profile.spans else ""
    return replace(profile, name=name, spans=spans, warnings=(*profile.warnings, *fewer))


def respanned_each(profiles: Sequence[Profile], sizes: Sizes) -> list[Profile]:
    """`respanned` of several, those as they are that can't have any of these spans; UserError where that is all of them."""
    found, error = [], None
    for profile in profiles:
        try:
            found.append(respanned(profile, sizes))
        except UserError as problem:
            found.append(profile)
            error = problem
    if error and not any(any(profile.spans) for profile in found):
        raise error
    return found


def with_default_spans(profile: Profile, text: str | None = None, context: int | None = None) -> Profile:
    """The profile with DEFAULT_SPANS as far as layers can have them, which a note says, where spans were left open.

    As it is: one that has spans, the fork's, a file's, one whose text says spans, be it 0 pages; types as fine; a context that
    is all in spans. text: what the profile was resolved from, None for types alone. context: tokens that it is for, None or 0
    for the model's.
    """
    said = text is not None and is_spanned(text)
    if said or profile.compat_fork or any(profile.spans):
        return profile
    wish = Spans().having(DEFAULT_SPANS)
    try:
        found = respanned(profile, DEFAULT_SPANS)
        found.check_context(context or 0)
    except UserError:
        return profile
    size = size_text(found.spans_bytes_at(_MANY_TOKENS))
    note = (
        f"spans ({wish.text()}) by default, {size} more a sequence for most of a coarse type's damage; --recent 0: none"
    )
    return replace(found, warnings=profile.warnings, notes=(*profile.notes, note))


def is_spanned(text: str) -> bool:
    """Whether a profile text says which spans there are, be it none; files do."""
    return re.search(r"\b(recent|first)\b", text) is not None or _head(text).endswith(".json")


def is_rule_line(text: str) -> bool:
    """Whether a profile text is read as a rule line; 'turbo4; recent: 2 pages' isn't, it is a type with spans."""
    head = _head(text)
    if not head:
        return bool(text.strip())  # spans alone, over types that are said elsewhere
    return ":" in head and not head.endswith(".json")


def _head(text: str) -> str:
    """A profile text without the spans of the whole profile at its end."""
    parts = text.split(";")
    while parts and SPAN_CLAUSE.match(parts[-1]):
        parts.pop()
    return ";".join(parts).strip()


def _looks_like_types(text: str) -> bool:
    return "/" in text or text in type_names()


def _mode_name(number: int, base: Pair) -> str:
    return f"mode {number}" if base == MODE_BASE else f"mode {number} over {pair_text(base)}"


def _possible() -> str:
    return (
        f"allowed are a type ({', '.join(type_names())}), K/V such as q8_0/turbo4, "
        f"a preset ({', '.join(PRESETS)}), modeN or modeN@K/V (N one of {', '.join(map(str, MODES))}), "
        "a rule line such as 'first3,last3: q8_0/turbo4; rest: turbo4', or a path ending in .json; "
        "each with spans after it, such as 'turbo4; recent: 2 pages turbo8; first: 1 page turbo8'"
    )
