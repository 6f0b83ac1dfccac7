"""`stratakv show`: what every layer of a model gets with a profile, and what it costs; reads no weights."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.model_option import add_model_option


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    from stratakv.cli.profile_options import add_profile_options

    parser = subparsers.add_parser(
        "show", help="what every layer gets with a profile: types, bytes a token, warnings", description=__doc__
    )
    add_model_option(parser)
    add_profile_options(parser)
    parser.add_argument("-c", "--ctx-size", type=int, metavar="N", help="also the cache's size at N tokens")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write JSON (stratakv/show/1), to standard output without FILE",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.measuring_options import emit
    from stratakv.cli.profile_options import profile_from_args
    from stratakv.engine.describe import describe_model
    from stratakv.engine.paths import attention_line, attention_paths, device_lines
    from stratakv.files import check_writable
    from stratakv.profile.table import format_table, show_table

    if args.json and args.json != "-":
        check_writable(args.json)
    model = describe_model(args.model)
    profile = profile_from_args(args, model.geometry, model.fingerprint)
    contexts = () if args.ctx_size is None else (args.ctx_size,)
    data = show_table(profile, contexts, warnings=model.warnings)
    data["attention"] = attention_paths(model.config, profile)
    count = len(model.geometry.kv_layers)
    lines = [attention_line(data["attention"], count), *device_lines(data["attention"], count)]
    emit("\n".join([format_table(data), *lines]), data, args.json)
    return 0
