"""`stratakv generate`: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from stratakv.errors import UserError


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.generation_options import add_generation_options

    parser = commands.add_parser("generate", help="continue a prompt", description=__doc__)
    add_generation_options(parser)
    parser.add_argument("-p", "--prompt", required=True, help="the text to continue, '-' reads it from standard input")
    parser.add_argument("-n", "--n-predict", type=int, default=128, help="new tokens at most (128)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cache import KVCache
    from stratakv.cli.generation_options import (
        closing_line,
        load_for_generation,
        sampling_from_args,
        utf8,
        warn_context,
    )
    from stratakv.engine.generate import generate

    sampling = sampling_from_args(args)
    if args.n_predict < 1:
        raise UserError(f"-n {args.n_predict}: at least 1 new token")
    prompt = utf8(sys.stdin.read if args.prompt == "-" else lambda: args.prompt, "the prompt")
    loaded, profile = load_for_generation(args)
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty, and this model's tokenizer adds no first token: give -p some text")
    warn_context(ids.shape[1], args.n_predict, loaded.geometry.context)
    cache = KVCache(loaded.model.config, profile)
    print(prompt, end="", flush=True)
    result = generate(
        loaded,
        cache,
        ids.long(),
        new_tokens=args.n_predict,
        sampling=sampling,
        emit=lambda text: print(text, end="", flush=True),
        prefill_chunk=args.batch_size,
    )
    print()
    print(closing_line(result, cache), file=sys.stderr)
    return 0
