"""`stratakv judge`: a tuned profile against every baseline at its bytes, on text that its tuning never saw."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stratakv.cli.recorded import command_line, set_run


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_far_options, add_measuring_options
    from stratakv.cli.profile_options import add_span_options

    parser = commands.add_parser("judge", help="a tuned profile against every baseline", description=__doc__)
    parser.add_argument("profile", metavar="PROFILE", help="a profile file that stratakv tune wrote")
    add_measuring_options(parser)
    add_far_options(parser)
    parser.add_argument("--permutations", type=int, default=20, metavar="N", help="of the profile over its layers (20)")
    add_span_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    parser.add_argument(
        "--runs",
        default="stratakv-runs",
        metavar="DIR",
        help="where scores are kept, to go on after a kill (stratakv-runs)",
    )
    set_run(parser, run, outputs=("json", "runs"))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.measuring_options import (
        check_far_options,
        emit,
        far_for_measuring,
        load_for_measuring,
        progress,
        say,
    )
    from stratakv.cli.profile_options import sizes_from_args
    from stratakv.engine.describe import describe_model
    from stratakv.errors import UserError
    from stratakv.files import check_writable
    from stratakv.measure.table import format_comparison, format_warnings
    from stratakv.profile import load_profile
    from stratakv.profile.parse import respanned
    from stratakv.tune.judge import format_claims, judge

    if args.permutations < 0:
        raise UserError(f"--permutations {args.permutations}: at least 0")
    if args.json and args.json != "-":
        check_writable(args.json)
    model = describe_model(args.model)
    check_far_options(args, model.geometry.context)
    profile = respanned(load_profile(args.profile, model.geometry, model.fingerprint), sizes_from_args(args))
    profile.check_context(args.ctx_size)
    loaded, contexts = load_for_measuring(args)
    far = far_for_measuring(args, loaded, contexts)
    for line in format_warnings([*loaded.warnings, *contexts.warnings, *far.warnings]):
        say(line)
    with progress("judge") as report:
        data = judge(
            loaded,
            contexts,
            profile,
            far=far,
            runs=Path(args.runs),
            permutations=args.permutations,
            batch=args.batch_size,
            command=command_line(args),
            progress=report,
        )
    emit(f"{format_comparison(data)}\n\n{format_claims(data)}", data, args.json)
    return 0
