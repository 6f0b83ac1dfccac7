"""What the benchmarks' options have in common: their reading, and the line that results name."""

from __future__ import annotations

import argparse
import math
from typing import Any

from stratakv.cli.recorded import command_line


def add_common(parser: argparse.ArgumentParser, *, seconds: float | None, what: str) -> None:
    """Threads, time, the peer and the result's file."""
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads of every side (torch's number)")
    default = "" if seconds is None else f" ({seconds:g})"
    parser.add_argument(
        "--seconds", type=float, default=seconds, metavar="S", help=f"time for {what}, at least{default}"
    )
    parser.add_argument(
        "--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python (this one, if it has)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")


def command(args: argparse.Namespace, threads: int, **settled: Any) -> str:
    """The line of a result: with the threads that were chosen, without the path of somebody's Python."""
    python = None if args.llama_python is None else "PYTHON"
    return command_line(args, threads=threads, llama_python=python, **settled)


def check_outputs(*paths: str | None) -> None:
    """UserError where one can't be written."""
    from stratakv.files import check_writable

    for path in paths:
        if path and path != "-":
            check_writable(path)


def words(text: str, option: str) -> tuple[str, ...]:
    """What stands between commas, one at least."""
    from stratakv.errors import UserError

    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise UserError(f"{option} {text!r}: give at least one, several with commas between them")
    return found


def sizes(text: str, option: str) -> tuple[int, ...]:
    """Several of `size`."""
    return tuple(size(word, option) for word in words(text, option))


def size(word: str, option: str) -> int:
    """32768, or 32k for it."""
    from stratakv.errors import UserError

    digits = word[:-1] if word[-1:] in ("k", "K") else word
    number = int(digits) * (1 if digits == word else 1024) if digits.isascii() and digits.isdigit() else 0
    if not 0 < number < 2**31:
        raise UserError(f"{option} {word!r}: a positive number, or one with k for 1,024 of it, such as 32k, below 2^31")
    return number


def threads(given: int | None) -> int:
    """Torch's number where none is given."""
    import torch

    from stratakv.errors import UserError

    if given is not None and not 1 <= given <= 1024:
        raise UserError(f"-t {given}: at least 1, at most 1024")
    return torch.get_num_threads() if given is None else given


def seconds(given: float | None) -> Any:
    """As given. UserError for a time that can't be."""
    from stratakv.errors import UserError

    if given is not None and not 0 <= given < math.inf:
        raise UserError(f"--seconds {given:g}: 0 or more, and finite")
    return given


def positive(number: int, option: str) -> int:
    """The number, from 1 on."""
    from stratakv.errors import UserError

    if number < 1:
        raise UserError(f"{option} {number}: at least 1")
    return number
