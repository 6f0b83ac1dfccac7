"""The command line in a result, read again, is the same run."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import pytest

from stratakv.cli.main import parse
from stratakv.cli.recorded import command_line, set_run

SHARED = ["-m", "a model.gguf", "-f", "text.txt", "--chunks", "3", "--dtype", "bf16"]
LINES = [
    ["compare", *SHARED, "--reference", "q8_0", "--json", "r.json", "f16", "first3: k=q8_0; rest: turbo4"],
    ["judge", "tuned.profile.json", *SHARED, "--permutations", "0", "--runs", "elsewhere"],
    ["perplexity", *SHARED, "-ctk", "turbo4", "--layer-adaptive", "7", "--kl-divergence", "-b", "64"],
    ["tune", "-m", "embedded", "--bpv", "4.5", "--floor", "0=q8_0/turbo4", "--floor", "11=f16/f16", "--out", "x"],
    ["tune", "-m", "embedded", "--memory", "2GiB", "--context", "128k", "--effort", "full", "-c", "128"],
    ["sensitivity", "--through", "llama.cpp", "-m", "m.gguf", "-f", "t.txt", "--types", "turbo4", "-o", "name"],
    ["bench", "attention", "-c", "128", "--parts", "decode", "--plot", "p.png", "--seconds", "0.5"],
    ["bench", "generate", "--profile", "f16", "--profile", "mode 7", "--no-transformers", "--prefill", "2k"],
    ["bench", "serve", "--rate", "0.25", "--clients", "1,2", "-f", "prompts.txt"],
    ["bench", "start", "-m", "embedded,x.gguf", "--llama-python", "/a/python"],
    ["bench", "busy", "--busy", "2"],
    ["bench", "tune", "-m", "llama-3.1-8b-shape-q4_k_m", "--layers", "2,6", "--draws", "2"],
]


def meaning(words: list[str]) -> dict[str, Any]:
    """What a line asks for, without where results go."""
    args = parse(words)
    return {
        name: value for name, value in vars(args).items() if name not in args.outputs and name not in ("parser", "func")
    }


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_the_line_read_again_is_the_same_run(words: list[str]) -> None:
    args = parse(words)
    program, *again = shlex.split(command_line(args))
    assert program == "stratakv"
    assert not {"--json", "--plot", "--out", "--runs"} & set(again)
    required = ["-o", "name"] if "-o" in words else []
    assert meaning([*again, *required]) == meaning(words)


def test_what_the_run_settled_is_told_and_left_out_where_it_is_none() -> None:
    args = parse(["bench", "busy", "--llama-python", "/home/me/python"])
    line = command_line(args, threads=2, llama_python=None)
    assert line.startswith(
        "stratakv bench busy -m embedded --profile turbo4 --busy 1,3 -c 128 --rounds 2 -t 2 --seconds 2"
    )
    assert "python" not in line
    with pytest.raises(ValueError, match="nothing"):
        command_line(args, nothing=1)


def test_defaults_are_told_so_that_later_ones_change_nothing() -> None:
    def line(default: int) -> str:
        parser = argparse.ArgumentParser(prog="stratakv x")
        parser.add_argument("-n", "--number", type=int, default=default)
        parser.add_argument("--out", default=".")
        set_run(parser, lambda args: 0, outputs=["out"])
        return command_line(parser.parse_args([]))

    assert (line(3), line(4)) == ("stratakv x -n 3", "stratakv x -n 4")
