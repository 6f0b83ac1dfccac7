"""`stratakv perplexity`: perplexity of one profile on a text, and its KL divergence from an f16 cache."""

from __future__ import annotations

import argparse
import shlex
from typing import Any


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_measuring_options
    from stratakv.cli.profile_options import add_profile_options

    parser = commands.add_parser("perplexity", help="perplexity and KL divergence of one profile", description=__doc__)
    add_measuring_options(parser)
    add_profile_options(parser)
    parser.add_argument("--kl-divergence", action="store_true", help="compare with an f16 cache, token by token")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.measuring_options import emit, load_for_measuring, option_words, progress, say
    from stratakv.cli.profile_options import profile_from_args
    from stratakv.engine.describe import describe_model
    from stratakv.measure.results import check_writable, perplexity
    from stratakv.measure.table import format_perplexity
    from stratakv.profile.table import format_table, show_table

    if args.json and args.json != "-":
        check_writable(args.json)
    description = describe_model(args.model)
    profile = profile_from_args(args, description.geometry, description.fingerprint)
    loaded, contexts = load_for_measuring(args)
    table = format_table(show_table(profile, [], [*loaded.warnings, *contexts.warnings]))
    if args.json == "-":
        say(table)
    else:
        print(table, end="\n\n", flush=True)
    words = ["stratakv", "perplexity", *option_words(args), *_profile_words(args)]
    with progress("perplexity") as report:
        data = perplexity(
            loaded,
            contexts,
            profile,
            divergence=args.kl_divergence,
            batch=args.batch_size,
            command=shlex.join([*words, "--kl-divergence"] if args.kl_divergence else words),
            progress=report,
        )
    emit(format_perplexity(data), data, args.json)
    return 0


def _profile_words(args: argparse.Namespace) -> list[str]:
    """The profile options as words of a command line that needs no environment."""
    from stratakv.cli.profile_options import mode_given

    given = {
        "-ctk": args.cache_type_k,
        "-ctv": args.cache_type_v,
        "--layer-adaptive": mode_given(args) if args.profile is None else None,
        "--profile": args.profile,
        "--compat": args.compat,
    }
    return [word for option, value in given.items() if value is not None for word in (option, str(value))]
