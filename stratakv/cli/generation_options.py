"""Options that `generate` and `chat` share, and the lines they print before and after."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from stratakv.cli.device_option import add_device_option, checked_device
from stratakv.cli.dtypes import DTYPES, torch_dtype
from stratakv.cli.model_option import add_model_option
from stratakv.cli.profile_options import add_profile_options, profile_from_args
from stratakv.errors import UserError

if TYPE_CHECKING:
    from stratakv.engine.cache import KVCache
    from stratakv.engine.generate import Generation, Sampling
    from stratakv.engine.load import LoadedModel
    from stratakv.profile import Profile


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Model, profile, sampling: llama.cpp's names and defaults."""
    add_model_option(parser)
    add_profile_options(parser)
    parser.add_argument("--temp", type=float, default=0.8, help="temperature, 0: always the most likely token (0.8)")
    parser.add_argument("--top-k", type=int, default=40, help="draw from the K most likely tokens, 0: all (40)")
    parser.add_argument("--top-p", type=float, default=0.95, help="and from this share of the probability (0.95)")
    parser.add_argument("--min-p", type=float, default=0.05, help="and not below this share of the best one (0.05)")
    parser.add_argument("-s", "--seed", type=_seed, help="seed of the draw (-1: random)")
    parser.add_argument(
        "-b", "--batch-size", type=int, default=512, help="tokens of the prompt in one forward call (512)"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="f32", help="of weights and activations (f32)")
    add_device_option(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="print the table of every layer's types first")


def _seed(text: str) -> int:
    """Unlike type=int up to 63 bits, see `sampling_from_args`."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None


def sampling_from_args(args: argparse.Namespace) -> Sampling:
    """Checked sampling settings."""
    checks = [
        ("--temp", args.temp, 0 <= args.temp < math.inf, "0 or more, and finite"),
        ("--top-k", args.top_k, args.top_k >= 0, "0 or more"),
        ("--top-p", args.top_p, 0 < args.top_p <= 1, "above 0, at most 1"),
        ("--min-p", args.min_p, 0 <= args.min_p < 1, "0 or more, below 1"),
        ("--seed", args.seed, args.seed is None or -1 <= args.seed < 2**63, "0 or more, below 2^63, or -1: random"),
        ("-b/--batch-size", args.batch_size, args.batch_size >= 1, "1 or more"),
    ]
    for name, value, good, allowed in checks:
        if not good:
            raise UserError(f"{name} {value}: it must be {allowed}")
    from stratakv.engine.generate import Sampling

    seed = None if args.seed == -1 else args.seed
    return Sampling(args.temp, args.top_k, args.top_p, args.min_p, seed)


def load_for_generation(args: argparse.Namespace) -> tuple[LoadedModel, Profile]:
    """The model and its profile; warnings and what every layer got go to stderr before anything runs."""
    from stratakv.engine.load import load_model
    from stratakv.engine.paths import attention_paths, device_lines
    from stratakv.profile.table import format_table, show_table

    device = checked_device(args.device)
    loaded = load_model(args.model, dtype=torch_dtype(args.dtype), device=device)
    profile = profile_from_args(args, loaded.geometry, loaded.fingerprint)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    if args.verbose:
        print(format_table(show_table(profile)), file=sys.stderr)
    else:
        for warning in (*loaded.warnings, *profile.warnings):
            print(f"warning: {warning}", file=sys.stderr)
        for note in profile.notes:
            print(note, file=sys.stderr)
        print(
            f"{loaded.name}: profile {profile.name}, {profile.bpv:.3f} bpv, {profile.bytes_per_token:,} bytes a token",
            file=sys.stderr,
        )
    if device != "cpu":
        paths = attention_paths(loaded.model.config, profile)
        for line in device_lines(paths, len(loaded.geometry.kv_layers)):
            print(line, file=sys.stderr)
    return loaded, profile


def utf8(read: Callable[[], str], what: str) -> str:
    """What `read` gives; a UserError where it is not UTF-8 (Python hides such bytes as surrogates in some locales)."""
    try:
        text = read()
        text.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise UserError(f"{what} is not UTF-8 text ({error.reason}): convert it, for example with iconv") from error
    return text


def closing_line(result: Generation, cache: KVCache) -> str:
    """Speed and cache size, in one line."""
    prompt = result.prompt_tokens / result.prompt_seconds if result.prompt_seconds else 0.0
    return (
        f"[prompt {result.prompt_tokens} tokens, {prompt:.1f} tokens/s; {len(result.tokens)} new tokens, "
        f"{result.tokens_per_second:.1f} tokens/s; cache {cache.get_seq_length():,} tokens, {cache.nbytes():,} bytes]"
    )


def warn_context(tokens: int, new_tokens: int, context: int) -> None:
    """Say when prompt and answer together exceed what the model was trained for."""
    if context and tokens + new_tokens > context:
        print(
            f"warning: {tokens} tokens of prompt and {new_tokens} new ones exceed the model's context of {context}: "
            "positions beyond it were never trained, expect nonsense there",
            file=sys.stderr,
        )
