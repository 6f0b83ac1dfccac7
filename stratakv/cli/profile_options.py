"""The options that choose a profile, the same in every command: llama.cpp's, the fork's, and --profile."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from stratakv.errors import UserError

if TYPE_CHECKING:
    from stratakv.profile import ModelGeometry, Profile
    from stratakv.profile.spans import Sizes

DEFAULT_TYPE = "f16"
MODE_VARIABLE = "TURBO_LAYER_ADAPTIVE"


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """Add -ctk, -ctv, --layer-adaptive, --profile, --compat, --recent and --first."""
    group = parser.add_argument_group("profile: which layer stores its K and V in which type")
    group.add_argument("-ctk", "--cache-type-k", metavar="TYPE", help=f"K of every layer ({DEFAULT_TYPE})")
    group.add_argument("-ctv", "--cache-type-v", metavar="TYPE", help=f"V of every layer ({DEFAULT_TYPE})")
    group.add_argument(
        "--layer-adaptive",
        metavar="N",
        help=f"the fork's mode 0, 1, 2, 5, 6 or 7 over -ctk/-ctv (environment: {MODE_VARIABLE})",
    )
    group.add_argument(
        "--profile",
        metavar="TEXT",
        help="TYPE, K/V, a rule line, a preset, modeN, modeN@K/V, or a profile file (.json)",
    )
    add_span_options(group)
    group.add_argument(
        "--compat", choices=["fork"], help="assign types as the llama.cpp fork does, its silent rules included"
    )


def add_span_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --recent and --first."""
    parser.add_argument(
        "--recent",
        metavar="PAGES[:TYPE]",
        help="keep the newest pages of a sequence, beside the one being filled, in a finer type (turbo8); 0: none. With neither "
        "option serve, generate, chat, show and plan keep 1 page and the first one of quantized types",
    )
    parser.add_argument(
        "--first",
        metavar="PAGES[:TYPE]",
        help="keep the first pages of each sequence in a finer type (turbo8); 0: none",
    )


def sizes_from_args(args: argparse.Namespace) -> Sizes:
    """What --recent and --first say, those that were given. Raises UserError."""
    from stratakv.profile.spans import parse_size

    sizes = {}
    for word in ("recent", "first"):
        if (text := getattr(args, word)) is not None:
            pages, colon, type_ = text.partition(":")
            if not pages.strip() or (colon and not type_.strip()):
                raise UserError(f"--{word} {text!r}: write PAGES or PAGES:TYPE, such as 2 or 2:turbo8; 0 for none")
            try:
                sizes[word] = parse_size(pages.strip(), type_.strip() if colon else None)
            except UserError as error:
                raise UserError(f"--{word} {text}: {error}") from None
    return sizes


def profile_from_args(
    args: argparse.Namespace,
    geometry: ModelGeometry,
    fingerprint: str | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    literal: bool = False,
) -> Profile:
    """The profile that the options of add_profile_options ask for on this model, spans included: the default ones where the
    options leave them open.

    environ: read for TURBO_LAYER_ADAPTIVE; the option wins over it. literal: without default spans, for commands that measure
    what is named. Raises UserError for options that contradict each other, and for whatever `resolve` refuses.
    """
    from stratakv.profile.parse import respanned, with_default_spans

    sizes, profile = sizes_from_args(args), _from_types(args, geometry, fingerprint, environ)
    if sizes or literal:
        return respanned(profile, sizes)
    return with_default_spans(profile, args.profile, getattr(args, "ctx_size", None))


def _from_types(
    args: argparse.Namespace, geometry: ModelGeometry, fingerprint: str | None, environ: Mapping[str, str]
) -> Profile:
    """The same without --recent and --first."""
    from stratakv.profile import resolve
    from stratakv.profile.parse import is_rule_line

    given = args.cache_type_k is not None or args.cache_type_v is not None
    base = (args.cache_type_k or DEFAULT_TYPE, args.cache_type_v or DEFAULT_TYPE)
    compat = args.compat == "fork"
    variable = environ.get(MODE_VARIABLE, "").strip()  # empty is how a shell unsets it for one command
    if args.profile is not None:
        if args.layer_adaptive is not None:
            raise UserError("--profile and --layer-adaptive were both given: give one, or --profile modeN@K/V")
        if given and not is_rule_line(args.profile):
            raise UserError(
                f"--profile {args.profile} already names every layer's types: leave -ctk and -ctv out "
                "(they go with a rule line, with --layer-adaptive, or alone)"
            )
        profile = resolve(
            args.profile, geometry, base=base if given else None, compat_fork=compat, fingerprint=fingerprint
        )
        ignored = (f"{MODE_VARIABLE}={variable} is ignored, --profile wins",) if variable else ()
        return replace(profile, warnings=ignored + profile.warnings)

    number = _mode_number(f"{MODE_VARIABLE}=", variable) if variable else None
    warnings: tuple[str, ...] = ()
    if args.layer_adaptive is not None:
        option = _mode_number("--layer-adaptive ", args.layer_adaptive)
        if number is not None and number != option:
            warnings = (f"--layer-adaptive {option} wins over {MODE_VARIABLE}={number}",)
        number = option
    text = f"{base[0]}/{base[1]}" if number is None else f"mode{number}"
    profile = resolve(text, geometry, base=base, compat_fork=compat, fingerprint=fingerprint)
    return replace(profile, warnings=warnings + profile.warnings)


def mode_given(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> str | None:
    """The mode of the option, else of TURBO_LAYER_ADAPTIVE, as it was written; None where neither is set."""
    variable = environ.get(MODE_VARIABLE, "").strip()  # empty is how a shell unsets it for one command
    option: str | None = args.layer_adaptive
    return option if option is not None else variable or None


def _mode_number(source: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{source}{text} is not a whole number: give a mode, 0, 1, 2, 5, 6 or 7") from None
