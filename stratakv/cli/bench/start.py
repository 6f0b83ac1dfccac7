"""`stratakv bench start`: from nothing to a model that is ready."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.bench.options import check_outputs, command, positive, threads, words
from stratakv.cli.recorded import set_run

SUMMARY = "seconds to the first line and until a model is ready, beside llama-cpp-python's load"


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Register the benchmark."""
    parser: argparse.ArgumentParser = kinds.add_parser("start", help=SUMMARY, description=SUMMARY)
    parser.add_argument(
        "-m", "--models", metavar="MODEL,...", default="embedded", help="GGUF file, directory, hub name, 'embedded'"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="processes of each kind, in turns (3)")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads of the server (torch's number)")
    parser.add_argument(
        "--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python (this one, if it has)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(parser, run, outputs=("json",))
    return parser


def run(args: argparse.Namespace) -> int:
    """Run `bench start`."""
    from stratakv.bench.peers.llama import llama_python
    from stratakv.bench.start import StartSettings, bench_start, format_start
    from stratakv.cli.measuring_options import emit, say

    check_outputs(args.json, None)
    settings = StartSettings(
        words(args.models, "-m"),
        positive(args.rounds, "--rounds"),
        threads(args.threads),
        llama_python(args.llama_python),
    )
    data = bench_start(settings, command=command(args, settings.threads), report=say)
    emit(format_start(data), data, args.json)
    return 0
