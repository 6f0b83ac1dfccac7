"""`stratakv report`: a tuned profile's evidence as one HTML page that needs nothing else."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("report", help="a tuned profile's evidence as one HTML page", description=__doc__)
    parser.add_argument("evidence", metavar="EVIDENCE", help="NAME.evidence.json that `tune` wrote beside the profile")
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="FILE",
        help="NAME.judge.json, measured on a text that the tuning never saw; repeat it for several texts",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the page to write (.html)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.errors import UserError
    from stratakv.evidence import read_evidence, read_judge
    from stratakv.files import check_writable, write_file
    from stratakv.report import build_report

    check_writable(args.output)
    evidence = read_evidence(args.evidence)
    judges = [read_judge(path) for path in args.judge]
    for path, judge in zip(args.judge, judges, strict=True):
        if judge["text"]["sha256"] == evidence["text"]["sha256"]:
            raise UserError(
                f"{path} was measured on {judge['text']['name']}, the text of the tuning: judge on another text"
            )
        if judge["model"]["fingerprint"] != evidence["model"]["fingerprint"]:
            raise UserError(
                f"{path} is of the model {judge['model']['name']}, {args.evidence} of {evidence['model']['name']}, or other "
                "weights of that name: give files of one model"
            )
    write_file(args.output, build_report(evidence, judges).encode())
    print(f"wrote {args.output}", file=sys.stderr)
    return 0
