"""`stratakv bench generate`: whole models."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.bench.options import (
    add_common,
    check_outputs,
    command,
    positive,
    seconds,
    size,
    sizes,
    threads,
    words,
)
from stratakv.cli.profile_options import add_span_options
from stratakv.cli.recorded import set_run

SUMMARY = "tokens per second and peak memory of whole models, by cache"


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Register the benchmark."""
    parser: argparse.ArgumentParser = kinds.add_parser("generate", help=SUMMARY, description=SUMMARY)
    parser.add_argument(
        "-m",
        "--models",
        metavar="MODEL,...",
        default="embedded,qwen3-0.6b-shape",
        help="GGUF file, directory, hub name, 'embedded', or random weights: 'qwen3-0.6b-shape' in bf16, and quantized: "
        "'qwen3-0.6b-shape-q4_k_m', '...-q8_0', 'llama-3.2-1b-shape-...' (embedded,qwen3-0.6b-shape)",
    )
    parser.add_argument("-c", "--contexts", metavar="N,...", default="1k,8k,32k", help="tokens of context (1k,8k,32k)")
    parser.add_argument(
        "--profile",
        action="append",
        metavar="PROFILE",
        help="repeat it for several (f16, q8_0, turbo4, turbo3, mode1, mode5, mode7, edges3)",
    )
    add_span_options(parser.add_argument_group("spans: a row more for each profile, beside its own in turn"))
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="processes a row, in turns (1)")
    parser.add_argument(
        "--prefill", metavar="N", help="time a prompt of N tokens too, at the first context (not timed)"
    )
    parser.add_argument(
        "--no-transformers", action="store_true", help="leave transformers' own caches out, for the time they take"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw tokens per second over context, .png or .svg")
    add_common(parser, seconds=5.0, what="the tokens of each process")
    set_run(parser, run, outputs=("json", "plot"))
    return parser


def run(args: argparse.Namespace) -> int:
    """Run `bench generate`."""
    from stratakv.bench.generate.plot import plot_generate
    from stratakv.bench.generate.run import PROFILES, GenerateSettings, bench_generate
    from stratakv.bench.generate.table import format_generate
    from stratakv.bench.peers.llama import llama_python
    from stratakv.cli.measuring_options import emit, say
    from stratakv.cli.profile_options import sizes_from_args
    from stratakv.picture import check_plot_path
    from stratakv.profile.spans import size_text

    check_outputs(args.json, args.plot)
    if args.plot:
        check_plot_path(args.plot)
    settings = GenerateSettings(
        models=words(args.models, "-m"),
        contexts=sizes(args.contexts, "-c"),
        profiles=tuple(args.profile or PROFILES),
        threads=threads(args.threads),
        seconds=seconds(args.seconds),
        rounds=positive(args.rounds, "--rounds"),
        prefill=size(args.prefill, "--prefill") if args.prefill else 0,
        transformers=not args.no_transformers,
        llama_python=llama_python(args.llama_python),
        spans="; ".join(f"{word}: {size_text(*size_)}" for word, size_ in sizes_from_args(args).items()),
    )
    line = command(args, settings.threads, profile=settings.profiles)
    data = bench_generate(settings, command=line, report=say)
    emit(format_generate(data), data, args.json)
    if args.plot:
        plot_generate([data], args.plot)
        say(f"wrote {args.plot}")
    return 0
