"""`stratakv needles`: keys and values planted in a text at 10 to 90 % of it, asked for at its end, profile by profile."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.recorded import command_line, set_run


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_measuring_options
    from stratakv.cli.profile_options import add_span_options

    parser = commands.add_parser("needles", help="keys and values planted in a text", description=__doc__)
    add_measuring_options(parser, context=2048, chunks=4)
    parser.add_argument(
        "profiles",
        nargs="+",
        metavar="PROFILE",
        help="TYPE, K/V, modeN, modeN@K/V, a preset, a rule line, or a profile file (.json); f16 is always measured too",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="draws keys, values and the order of questions (0)"
    )
    add_span_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(parser, run, outputs=("json",))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.device_option import checked_device
    from stratakv.cli.dtypes import torch_dtype
    from stratakv.cli.measuring_options import emit, progress, say
    from stratakv.cli.profile_options import sizes_from_args
    from stratakv.engine.describe import describe_model
    from stratakv.engine.load import load_model, load_tokenizer
    from stratakv.errors import UserError
    from stratakv.files import check_writable
    from stratakv.measure.corpus import read_text
    from stratakv.measure.needles import plant
    from stratakv.measure.retrieval import format_needles, needles
    from stratakv.measure.table import format_warnings
    from stratakv.profile import resolve
    from stratakv.profile.parse import respanned_each

    if args.json and args.json != "-":
        check_writable(args.json)
    if args.batch_size < 1:
        raise UserError(f"-b {args.batch_size}: at least 1 token in a forward call")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: at least 0")
    model = describe_model(args.model)
    given = [resolve(text, model.geometry, fingerprint=model.fingerprint) for text in args.profiles]
    profiles = respanned_each(given, sizes_from_args(args))
    for profile in profiles:
        profile.check_context(args.ctx_size)
    text = read_text(args.file)
    haystacks, warnings = plant(
        text,
        load_tokenizer(model),
        args.ctx_size,
        args.chunks,
        seed=args.seed,
        model_context=model.geometry.context,
    )
    device = checked_device(args.device)
    loaded = load_model(args.model, dtype=torch_dtype(args.dtype), exact=True, device=device)
    for line in [*loaded.notes, *format_warnings([*loaded.warnings, *warnings])]:
        say(line)
    with progress("needles") as report:
        data = needles(
            loaded,
            text,
            haystacks,
            profiles,
            seed=args.seed,
            batch=args.batch_size,
            command=command_line(args),
            warnings=warnings,
            progress=report,
        )
    emit(format_needles(data), data, args.json)
    return 0
