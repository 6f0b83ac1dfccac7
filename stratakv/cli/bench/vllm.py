"""`stratakv bench vllm`: profiles inside vLLM, beside vLLM as it ships."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.bench.options import check_outputs, positive, size, sizes, threads
from stratakv.cli.recorded import command_line, set_run

SUMMARY = "throughput, time to first token and sequences at once inside vLLM, with profiles and as it ships"


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Register the benchmark."""
    parser: argparse.ArgumentParser = kinds.add_parser("vllm", help=SUMMARY, description=SUMMARY)
    parser.add_argument("-m", "--model", required=True, metavar="DIRECTORY", help="a model in Hugging Face format")
    parser.add_argument(
        "--vllm-python", metavar="PATH", help="the python of an environment with vLLM and stratakv (this one)"
    )
    parser.add_argument(
        "--profile", action="append", metavar="PROFILE", help="of the packed cache; repeat it for several (turbo4)"
    )
    parser.add_argument("--requests", type=int, default=16, metavar="N", help="requests at once (16)")
    parser.add_argument("--prompt", default="448", metavar="N", help="tokens of their prompts (448)")
    parser.add_argument("-n", "--answer", type=int, default=64, metavar="N", help="tokens of their answers (64)")
    parser.add_argument(
        "-c", "--contexts", default="8k", metavar="N,...", help="tokens of one long sequence that is decoded (8k)"
    )
    parser.add_argument("--far-answer", type=int, default=24, metavar="N", help="of which it decodes so many (24)")
    parser.add_argument(
        "--sequences",
        type=int,
        default=4,
        metavar="N",
        help="count sequences of 4k tokens in the memory of N of stock vLLM's, 0: don't (4)",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds in which engines take turns (3)")
    parser.add_argument("--eager", action="store_true", help="without vLLM's compiled graphs, which take a minute each")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the prompts (1)")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads of every engine (torch's number)")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(parser, run, outputs=("json",))
    return parser


def run(args: argparse.Namespace) -> int:
    """Run `bench vllm`."""
    import sys

    from stratakv.bench.vllm.run import VllmSettings, bench_vllm
    from stratakv.bench.vllm.table import format_vllm
    from stratakv.cli.measuring_options import emit, say
    from stratakv.errors import UserError

    check_outputs(args.json, None)
    contexts = sizes(args.contexts, "-c")
    if min(args.answer, args.far_answer) < 2:
        raise UserError(
            f"-n {args.answer} --far-answer {args.far_answer}: at least 2 tokens, the first one is timed apart"
        )
    if min(contexts) <= args.far_answer:
        raise UserError(f"-c {args.contexts} --far-answer {args.far_answer}: a context holds more than its answer")
    if not 0 <= args.sequences <= 64:
        raise UserError(f"--sequences {args.sequences}: it must be 0 to 64")
    settings = VllmSettings(
        args.vllm_python or sys.executable,
        args.model,
        tuple(args.profile or ("turbo4",)),
        requests=positive(args.requests, "--requests"),
        prompt=size(args.prompt, "--prompt"),
        answer=args.answer,
        contexts=contexts,
        far_answer=args.far_answer,
        long=args.sequences,
        rounds=positive(args.rounds, "--rounds"),
        threads=threads(args.threads),
        eager=args.eager,
        seed=args.seed,
    )
    python = "PYTHON" if args.vllm_python else None
    line = command_line(args, threads=settings.threads, profile=settings.profiles, vllm_python=python)
    data = bench_vllm(settings, command=line, report=say)
    emit(format_vllm(data), data, args.json)
    return 0
