"""`stratakv generate`: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stratakv.errors import UserError

if TYPE_CHECKING:
    from stratakv.engine.cache import KVCache
    from stratakv.engine.generate import Generation, Sampling
    from stratakv.engine.load import LoadedModel
    from stratakv.profile import Profile


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.generation_options import add_generation_options

    parser = commands.add_parser("generate", help="continue a prompt", description=__doc__)
    add_generation_options(parser)
    parser.add_argument("-p", "--prompt", required=True, help="the text to continue, '-' reads it from standard input")
    parser.add_argument("-n", "--n-predict", type=int, default=128, help="new tokens at most (128)")
    parser.add_argument(
        "--json", metavar="FILE", help="write text, token ids, speed and bytes as JSON, '-': to standard output"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from stratakv.cli.generation_options import (
        closing_line,
        load_for_generation,
        sampling_from_args,
        utf8,
        warn_context,
    )
    from stratakv.engine.cache import KVCache
    from stratakv.engine.generate import generate
    from stratakv.engine.prompt import prompt_ids
    from stratakv.measure.results import check_writable, write_json

    sampling = sampling_from_args(args)
    if args.n_predict < 1:
        raise UserError(f"-n {args.n_predict}: at least 1 new token")
    if args.json and args.json != "-":
        check_writable(args.json)
    if args.prompt == "-" and sys.stdin is None:
        raise UserError("-p -: standard input is closed, give the prompt with -p or pipe it in")
    prompt = utf8(sys.stdin.read if args.prompt == "-" else lambda: args.prompt, "the prompt")
    loaded, profile = load_for_generation(args)
    ids = torch.tensor([prompt_ids(loaded.tokenizer, prompt)], dtype=torch.int64)
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty, and this model's tokenizer adds no first token: give -p some text")
    warn_context(ids.shape[1], args.n_predict, loaded.geometry.context)
    cache = KVCache(loaded.model.config, profile)
    stream = sys.stderr if args.json == "-" else sys.stdout
    print(prompt, end="", flush=True, file=stream)
    result = generate(
        loaded,
        cache,
        ids,
        new_tokens=args.n_predict,
        sampling=sampling,
        emit=lambda text: print(text, end="", flush=True, file=stream),
        prefill_chunk=args.batch_size,
    )
    print(file=stream)
    print(closing_line(result, cache), file=sys.stderr)
    if args.json:
        data = _as_json(loaded, profile, sampling, prompt, result, cache)
        if args.json == "-":
            print(json.dumps(data, indent=1, allow_nan=False))
        else:
            write_json(data, args.json)
    return 0


def _as_json(
    loaded: LoadedModel, profile: Profile, sampling: Sampling, prompt: str, result: Generation, cache: KVCache
) -> dict[str, Any]:
    """What came out and what it took, "stratakv/generate/1"; seconds are of the prompt and of the tokens after the first."""
    return {
        "schema": "stratakv/generate/1",
        "model": {"name": loaded.name, "fingerprint": loaded.fingerprint},
        "profile": {
            "name": profile.name,
            "layers": [list(pair) for pair in profile.pairs],
            "spans": [each.to_json() for each in profile.spans],
        },
        "bytes_per_token": profile.bytes_per_token,
        "bpv": profile.bpv,
        "sampling": asdict(sampling),
        "prompt": prompt,
        "text": result.text,
        "tokens": result.tokens,
        "prompt_tokens": result.prompt_tokens,
        "prompt_seconds": result.prompt_seconds,
        "decode_seconds": result.decode_seconds,
        "tokens_per_second": result.tokens_per_second,
        "cache_tokens": cache.get_seq_length(),
        "cache_bytes": cache.nbytes(),
        "warnings": [*loaded.warnings, *profile.warnings],
    }
