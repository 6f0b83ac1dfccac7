"""`stratakv compare`: profiles side by side on a text: bytes, PPL, KL divergence of all and of far predictions, verdicts."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.recorded import command_line, set_run

REFERENCE = "turbo4"


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_comparing_options
    from stratakv.cli.profile_options import add_span_options

    parser = commands.add_parser("compare", help="profiles side by side on a text", description=__doc__)
    add_comparing_options(parser)
    parser.add_argument(
        "profiles",
        nargs="+",
        metavar="PROFILE",
        help="TYPE, K/V, modeN, modeN@K/V, a preset, a rule line, or a profile file (.json); 'turbo4; recent: 2 pages'",
    )
    parser.add_argument(
        "--reference",
        default=REFERENCE,
        metavar="PROFILE",
        help=f"what the verdicts are against ({REFERENCE}); added when it is not among the profiles",
    )
    add_span_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    parser.add_argument("--plot", metavar="FILE", help="draw KL divergence over bytes, .png or .svg")
    set_run(parser, run, outputs=("json", "plot"))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.measuring_options import describe_for_comparing, emit, load_for_comparing, progress, say
    from stratakv.cli.profile_options import sizes_from_args
    from stratakv.measure.plot import plot_comparison
    from stratakv.measure.results import check_writable, compare
    from stratakv.measure.table import format_comparison
    from stratakv.picture import check_plot_path
    from stratakv.profile import resolve
    from stratakv.profile.parse import respanned_each

    for path in (args.json, args.plot):
        if path and path != "-":
            check_writable(path)
    if args.plot:
        check_plot_path(args.plot)
    model = describe_for_comparing(args)
    given = [resolve(text, model.geometry, fingerprint=model.fingerprint) for text in args.profiles]
    profiles = respanned_each(given, sizes_from_args(args))
    reference = resolve(args.reference, model.geometry, fingerprint=model.fingerprint)
    for profile in (*profiles, reference):
        profile.check_context(args.ctx_size)
    loaded, contexts, far = load_for_comparing(args)
    with progress("compare") as report:
        data = compare(
            loaded,
            contexts,
            profiles,
            reference,
            far=far,
            batch=args.batch_size,
            command=command_line(args),
            progress=report,
        )
    emit(format_comparison(data), data, args.json)
    if args.plot:
        plot_comparison(data, args.plot)
        say(f"wrote {args.plot}")
    return 0
