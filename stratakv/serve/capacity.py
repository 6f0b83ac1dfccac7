"""How many tokens of context a server offers, and whether they fit, before any weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile
from stratakv.profile.spans import spans_text
from stratakv.serve.groups import WindowGroup, capacities, reserve, window_groups
from stratakv.sizes import size_text

_UNKNOWN_CONTEXT = 4096
# tests/serve/test_memory.py: 1,000 requests may leave so much
_LEFT_BEHIND = 64 * 2**20
# Tensors alive at once in a layer, as wide as the model and as its feed-forward part; copies of logits while a token is drawn
_WIDTHS, _INNER_WIDTHS, _LOGITS = 8, 4, 4


@dataclass(frozen=True)
class Capacity:
    """context: tokens of one request, prompt and answer. tokens: of all requests together, whole pages. cache_bytes: theirs,
    of which fine_bytes are fine pages of spans."""

    context: int
    tokens: int
    cache_bytes: int
    notes: tuple[str, ...] = ()
    fine_bytes: int = 0


def plan_capacity(
    profile: Profile, *, slots: int, chunk: int, context: int | None, memory: int | None, free: int
) -> Capacity:
    """What the options imply.

    context: -c, tokens that all requests share and one may use alone (0 or None: the model's). memory: --cache-memory in
    bytes; -c is then the limit of one request only. chunk: tokens of prompts in one step. free: bytes that are left beside
    the weights. With neither option, every slot gets the model's context, or all share half of what is free if that is less.
    Raises UserError for what doesn't fit.
    """
    groups, trained = window_groups(profile), profile.geometry.context
    notes: list[str] = []
    wanted = context or trained or _UNKNOWN_CONTEXT

    def tokens_in(nbytes: int, one: int) -> int:
        """Tokens of all requests together in so many bytes, where one request has `one` at most."""
        pages = capacities(groups, max(nbytes, 0), slots, one, chunk)
        if groups[0].window is None:
            fine = groups[0].part == "sealed" and not pages[0]  # no sequence is longer than its spans
            return PAGE_TOKENS * (pages[1] if fine else groups[0].together(pages[0], one))
        needs = [(count, group.pages_for(one, chunk)) for group, count in zip(groups, pages, strict=True)]
        at_once = min(count // need for count, need in needs if need)
        return PAGE_TOKENS * at_once * -(-one // PAGE_TOKENS)

    if context and 0 < trained < context:
        notes.append(
            f"-c {context} is beyond the model's {trained}: later positions were never trained, expect nonsense there"
        )
    if memory is not None or not context:
        nbytes = free // 2 if memory is None else memory
        while (tokens := tokens_in(nbytes, wanted)) < wanted and not context and wanted > PAGE_TOKENS:
            wanted = max(tokens, wanted // 2 // PAGE_TOKENS * PAGE_TOKENS, PAGE_TOKENS)
        if tokens < min(wanted, PAGE_TOKENS) or (context and tokens < context):
            what = (
                f"half of the free memory, {size_text(nbytes)},"
                if memory is None
                else f"--cache-memory {size_text(nbytes)}"
            )
            raise UserError(
                f"{what} holds {tokens:,} tokens at {profile.bytes_per_token:,} bytes each, one request needs {wanted:,}: "
                "give more memory, a smaller -c, or a profile with fewer bytes"
            )
        if memory is None:
            nbytes = min(nbytes, _bytes_for(groups, slots * wanted, slots, wanted, chunk))
            tokens = tokens_in(nbytes, wanted)
            if tokens < slots * wanted:
                notes.append(
                    f"half of the free memory holds {tokens:,} tokens, not {slots} times {wanted:,}: "
                    "requests may have to wait (-c or --cache-memory say otherwise)"
                )
    else:
        nbytes = _bytes_for(groups, context, slots, context, chunk)
        tokens = tokens_in(nbytes, context)
    if nbytes > free:
        raise UserError(
            f"a cache of {tokens:,} tokens at {profile.bytes_per_token:,} bytes each needs {size_text(nbytes)}, "
            f"{size_text(max(free, 0))} are free beside the weights: "
            "give a smaller -c or --cache-memory, or a profile with fewer bytes"
        )
    one = min(wanted, tokens)
    shares = zip(groups, capacities(groups, nbytes, slots, one, chunk), strict=True)
    fine = sum(count * group.page_bytes for group, count in shares if group.part == "fine")
    return Capacity(one, tokens, nbytes, tuple(notes), fine)


def affordable(profile: Profile, bare: Profile, capacity_of: Callable[[Profile], Capacity]) -> tuple[Profile, Capacity]:
    """A profile with spans that nobody asked for, and its capacity, where a request may be as long with them as without; else
    `bare`, the same without, and a note.

    capacity_of: as `plan_capacity`, whose UserError is the bare profile's.
    """
    if profile.spans == bare.spans:
        return profile, capacity_of(profile)
    plain = capacity_of(bare)
    found: Capacity | None = None
    try:
        found = capacity_of(profile)
        profile.check_context(found.context)
    except UserError:
        found = None
    if found is None or found.context < plain.context:
        note = (
            f"no spans ({spans_text(profile.spans)}), which would take most of a coarse type's damage away: there is no room for "
            f"them beside {plain.context:,} tokens a request"
        )
        return replace(bare, notes=(*bare.notes, note)), plain
    if found.tokens < plain.tokens:
        more = f"without spans {plain.tokens:,} tokens of all requests would fit, with them {found.tokens:,} do"
        found = replace(found, notes=(*found.notes, more))
    return profile, found


def _bytes_for(groups: list[WindowGroup], tokens: int, slots: int, one: int, chunk: int) -> int:
    """Bytes with which `capacities` gives so many tokens."""
    counts = reserve(groups, -(-tokens // PAGE_TOKENS), slots, one, chunk)
    return sum(count * group.page_bytes for count, group in zip(counts, groups, strict=True))


def working_bytes(config: Any, *, slots: int, chunk: int) -> int:
    """What a server needs beside weights and cache, about: activations of the largest step, logits, and what requests leave.

    config: the model's, of transformers.
    """
    text = config.get_text_config(decoder=True)
    width = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * width
    rows = (chunk + slots) * (_WIDTHS * width + _INNER_WIDTHS * inner)
    return _LEFT_BEHIND + 4 * int(rows + _LOGITS * slots * text.vocab_size)


def capacity_line(profile: Profile, capacity: Capacity, slots: int) -> str:
    """The same in one line for the start of a server."""
    fine = f"; {size_text(capacity.fine_bytes)} are fine pages of spans" if capacity.fine_bytes else ""
    size = f"{size_text(capacity.cache_bytes)} ({profile.bytes_per_token:,} bytes a token{fine})"
    return f"cache: {capacity.tokens:,} tokens in {size}, up to {capacity.context:,} a request, {slots} slots"
