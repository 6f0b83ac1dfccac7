"""`stratakv bench attention`, `generate`, `serve`, `start`, `busy`, `tune` and `vllm`: speed on this machine, beside others'."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.bench import attention, busy, generate, serve, start, tune, vllm

BENCHMARKS = attention, generate, serve, start, busy, tune, vllm


def add_parser(commands: Any) -> None:
    """Register the command and its benchmarks."""
    parser = commands.add_parser(
        "bench",
        help="speed on this machine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    parser.epilog = "".join(each.add_parser(kinds).format_usage() for each in BENCHMARKS)
