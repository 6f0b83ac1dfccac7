"""`stratakv perplexity`: perplexity of one profile on a text, and its KL divergence from an f16 cache."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.recorded import command_line, set_run


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_measuring_options
    from stratakv.cli.profile_options import add_profile_options

    parser = commands.add_parser("perplexity", help="perplexity and KL divergence of one profile", description=__doc__)
    add_measuring_options(parser)
    add_profile_options(parser)
    parser.add_argument("--kl-divergence", action="store_true", help="compare with an f16 cache, token by token")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(parser, run, outputs=("json",))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.measuring_options import emit, load_for_measuring, progress, say
    from stratakv.cli.profile_options import mode_given, profile_from_args
    from stratakv.engine.describe import describe_model
    from stratakv.measure.results import check_writable, perplexity
    from stratakv.measure.table import format_perplexity
    from stratakv.profile.table import format_table, show_table

    if args.json and args.json != "-":
        check_writable(args.json)
    description = describe_model(args.model)
    profile = profile_from_args(args, description.geometry, description.fingerprint, literal=True)
    profile.check_context(args.ctx_size)
    loaded, contexts = load_for_measuring(args)
    table = format_table(show_table(profile, [], [*loaded.warnings, *contexts.warnings]))
    if args.json == "-":
        say(table)
    else:
        print(table, end="\n\n", flush=True)
    mode = mode_given(args) if args.profile is None else None  # a line that needs no environment
    with progress("perplexity") as report:
        data = perplexity(
            loaded,
            contexts,
            profile,
            divergence=args.kl_divergence,
            batch=args.batch_size,
            command=command_line(args, layer_adaptive=mode),
            progress=report,
        )
    emit(format_perplexity(data), data, args.json)
    return 0
