"""`stratakv bench serve`: servers under load."""

from __future__ import annotations

import argparse
import math
from typing import Any

from stratakv.cli.bench.options import check_outputs, command, positive, sizes, threads
from stratakv.cli.model_option import add_model_option
from stratakv.cli.recorded import set_run

SUMMARY = "throughput, time to first token and between tokens of `stratakv serve` and llama-cpp-python's server"


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Register the benchmark."""
    parser: argparse.ArgumentParser = kinds.add_parser("serve", help=SUMMARY, description=SUMMARY)
    add_model_option(parser, required=False, default="embedded")
    parser.add_argument("-f", "--file", metavar="TEXT", help="a UTF-8 text to cut prompts from (the embedded one)")
    parser.add_argument(
        "--profile", action="append", metavar="PROFILE", help="repeat it for several, f16 first (f16, turbo4)"
    )
    parser.add_argument("--clients", metavar="N,...", default="1,4,16", help="clients at once (1,4,16)")
    parser.add_argument("--each", type=int, default=2, metavar="N", help="requests of each client in a round (2)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds in which servers take turns (3)")
    parser.add_argument("--rate", type=float, default=2.0, metavar="R", help="open loop: requests a second (2)")
    parser.add_argument("--requests", type=int, default=16, metavar="N", help="open loop: requests, 0: none (16)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of prompts and arrivals (1)")
    parser.add_argument("--prefix", type=int, default=3968, metavar="N", help="tokens of a shared beginning (3968)")
    parser.add_argument(
        "--sequences",
        type=int,
        default=8,
        metavar="N",
        help="count sequences of 2k tokens in the memory of N of f16 (8)",
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads of every server (torch's number)")
    parser.add_argument("--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python[server]")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(parser, run, outputs=("json",))
    return parser


def run(args: argparse.Namespace) -> int:
    """Run `bench serve`."""
    import importlib.util

    from stratakv.assets import tuning_text
    from stratakv.cli.measuring_options import emit, say
    from stratakv.errors import UserError

    if missing := [name for name in ("fastapi", "httpx", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"bench serve needs {', '.join(missing)}: pip install 'stratakv[serve]'")
    check_outputs(args.json, None)
    if not 0 < args.rate < math.inf or not 0 <= args.requests <= 1000:
        raise UserError(f"--rate {args.rate:g} --requests {args.requests}: a rate above 0, and 0 to 1000 requests")
    if not 0 <= args.sequences <= 64:
        raise UserError(f"--sequences {args.sequences}: it must be 0 to 64")
    clients = sizes(args.clients, "--clients")
    each, rounds = positive(args.each, "--each"), positive(args.rounds, "--rounds")
    if max(clients) > 256 or max(clients) * each * rounds > 10_000:
        raise UserError(
            f"--clients {args.clients} --each {each} --rounds {rounds}: 256 clients at most, 10,000 requests in all at most"
        )
    # what takes seconds to import comes after what can be refused
    from stratakv.bench.peers.llama import llama_python
    from stratakv.bench.serve.run import ServeSettings, bench_serve
    from stratakv.bench.serve.table import format_serve

    settings = ServeSettings(
        args.model,
        args.file or str(tuning_text()),
        tuple(args.profile or ("f16", "turbo4")),
        clients=clients,
        each=each,
        rounds=rounds,
        rate=args.rate,
        count=args.requests,
        prefix=args.prefix,
        sequences=args.sequences,
        threads=threads(args.threads),
        seed=args.seed,
        llama_python=llama_python(args.llama_python) if args.llama_python else None,
    )
    line = command(args, settings.threads, profile=settings.profiles)
    data = bench_serve(settings, command=line, report=say)
    emit(format_serve(data), data, args.json)
    return 0
