"""`stratakv bench busy`: beside other programs."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.bench.options import add_common, check_outputs, command, positive, seconds, size, sizes, threads
from stratakv.cli.model_option import add_model_option
from stratakv.cli.recorded import set_run

SUMMARY = "decoding and tuning beside other programs that want the cores, and llama.cpp's decoding"


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Register the benchmark."""
    parser: argparse.ArgumentParser = kinds.add_parser("busy", help=SUMMARY, description=SUMMARY)
    add_model_option(parser, required=False, default="embedded")
    parser.add_argument("--profile", default="turbo4", metavar="PROFILE", help="of the cache (turbo4)")
    parser.add_argument("--busy", default="1,3", metavar="N,...", help="busy processes, after none (1,3)")
    parser.add_argument("-c", "--context", default="128", metavar="N", help="tokens of prompts and tuning passes (128)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="visits of each case, in turns (2)")
    add_common(parser, seconds=2.0, what="each visit")
    set_run(parser, run, outputs=("json",))
    return parser


def run(args: argparse.Namespace) -> int:
    """Run `bench busy`."""
    from stratakv.bench.busy.run import BusySettings, bench_busy
    from stratakv.bench.busy.table import format_busy
    from stratakv.bench.peers.llama import llama_python
    from stratakv.cli.measuring_options import emit, say
    from stratakv.errors import UserError

    check_outputs(args.json, None)
    counts = sizes(args.busy, "--busy")
    if max(counts) > 64:
        raise UserError(f"--busy {args.busy}: 64 processes at most")
    settings = BusySettings(
        args.model,
        args.profile,
        busy=(0, *sorted(set(counts))),
        context=size(args.context, "-c"),
        threads=threads(args.threads),
        seconds=seconds(args.seconds),
        rounds=positive(args.rounds, "--rounds"),
        llama_python=llama_python(args.llama_python),
    )
    data = bench_busy(settings, command=command(args, settings.threads), report=say)
    emit(format_busy(data), data, args.json)
    return 0
