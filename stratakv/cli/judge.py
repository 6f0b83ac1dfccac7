"""`stratakv judge`: a tuned profile against every baseline at its bytes, on text that its tuning never saw."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stratakv.cli.recorded import command_line, set_run

CHUNKS = 16  # of each of 40 profiles and more: minutes on small models
CONTEXT = 512  # of profiles that no tuning made


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_comparing_options
    from stratakv.cli.profile_options import add_span_options

    parser = commands.add_parser("judge", help="a tuned profile against every baseline", description=__doc__)
    parser.add_argument("profile", metavar="PROFILE", help="a profile file that stratakv tune wrote")
    add_comparing_options(parser, context=None, chunks=CHUNKS)
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
    from stratakv.cli.measuring_options import describe_for_comparing, emit, load_for_comparing, progress
    from stratakv.cli.profile_options import sizes_from_args
    from stratakv.errors import UserError
    from stratakv.files import check_writable
    from stratakv.measure.table import format_comparison
    from stratakv.profile import load_profile
    from stratakv.profile.parse import respanned
    from stratakv.tune.judge import format_claims, judge

    if args.permutations < 0:
        raise UserError(f"--permutations {args.permutations}: at least 0")
    if args.json and args.json != "-":
        check_writable(args.json)
    model = describe_for_comparing(args)
    profile = respanned(load_profile(args.profile, model.geometry, model.fingerprint), sizes_from_args(args))
    if args.ctx_size is None:
        args.ctx_size = min(int((profile.evidence or {}).get("context") or CONTEXT), model.geometry.context or CONTEXT)
    profile.check_context(args.ctx_size)
    loaded, contexts, far = load_for_comparing(args)
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
