"""`stratakv bench tune`: what tuning's gradients take."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.bench.options import check_outputs, positive, size, sizes, threads
from stratakv.cli.recorded import command_line, set_run

SUMMARY = "seconds, passes and peak memory of tuning's gradients"
_SHAPE = "llama-3.1-8b-shape-q4_k_m"


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Register the benchmark."""
    parser: argparse.ArgumentParser = kinds.add_parser("tune", help=SUMMARY, description=SUMMARY)
    parser.add_argument(
        "-m",
        "--model",
        default="embedded",
        metavar="MODEL",
        help=f"GGUF file, directory, hub name, 'embedded', or '{_SHAPE}': random weights",
    )
    parser.add_argument("-c", "--context", default="512", metavar="N", help="tokens (512)")
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="backward passes of each context (1)")
    parser.add_argument(
        "--layers", default="4,8", metavar="N,N", help=f"layers that {_SHAPE} is measured with, even numbers (4,8)"
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads (torch's number)")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(parser, run, outputs=("json",))
    return parser


def run(args: argparse.Namespace) -> int:
    """Run `bench tune`."""
    from stratakv.bench.tune.run import TuneSettings, bench_tune, format_tune
    from stratakv.cli.measuring_options import emit, say
    from stratakv.errors import UserError

    check_outputs(args.json)
    layers = sizes(args.layers, "--layers")
    if len(set(layers)) < 2 or any(number % 2 for number in layers):
        raise UserError(f"--layers {args.layers}: give two different even numbers or more, such as 4,8")
    context = size(args.context, "-c")
    if context < 4:
        raise UserError(f"-c {args.context}: 4 tokens at least")
    settings = TuneSettings(args.model, context, positive(args.draws, "--draws"), threads(args.threads), layers)
    data = bench_tune(settings, command=command_line(args, threads=settings.threads), report=say)
    emit(format_tune(data), data, args.json)
    return 0
