"""The command line that a result names, so that anybody can make its numbers again: told by the parser that read it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection
from typing import Any


def set_run(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int], *, outputs: Collection[str] = ()
) -> None:
    """Have `run` called with what this parser reads, and able to ask for its `command_line`.

    outputs: options, by their name in the namespace, that say where results go and don't change them.
    """
    parser.set_defaults(func=run, parser=parser, outputs=frozenset(outputs))


def command_line(args: argparse.Namespace, **settled: Any) -> str:
    """Every option that has a value, defaults too, since a later version may have others; then the positional arguments.

    settled: by option what the run made of it, such as the number of threads where none was given; None leaves it out.
    """
    if unknown := settled.keys() - vars(args).keys():
        raise ValueError(f"not options of {args.parser.prog}: {', '.join(sorted(unknown))}")
    given = vars(args) | settled
    options: list[str] = []
    positional: list[str] = []
    for action in args.parser._actions:
        value = given.get(action.dest)
        if action.dest in args.outputs or value is None or value is False:
            continue
        values = [_text(each) for each in value] if isinstance(value, (list, tuple)) else [_text(value)]
        if not action.option_strings:
            positional += values
        elif action.nargs == 0:
            options.append(action.option_strings[0])
        else:
            options += [word for each in values for word in (action.option_strings[0], each)]
    return shlex.join([*shlex.split(args.parser.prog), *options, *positional])


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
