"""The command line's promises: exit codes, one line for a mistake, nothing half-written, Ctrl-C, closed pipes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stratakv import __version__, resolve
from stratakv.assets import embedded_model
from stratakv.cli.main import COMMANDS, main
from stratakv.engine.describe import describe_model
from stratakv.profile.files import save_profile

SHOW = ("show", "-m", "embedded")
PERPLEXITY = ("perplexity", "-m", "embedded", "-f")
COMPARE = ("compare", "-m", "embedded", "-f")
SENSITIVITY = ("sensitivity", "--through", "llama.cpp", "-m", "copy.gguf", "-f", "short.txt", "-o", "x")
GENERATE = ("generate", "-m", "embedded", "-p", "x")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with everything that can be wrong."""
    path = tmp_path_factory.mktemp("bad")
    whole = embedded_model().read_bytes()
    (path / "cut-header.gguf").write_bytes(whole[:1000])
    (path / "cut-weights.gguf").write_bytes(whole[:-1000])
    (path / "foreign.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    (path / "directory").mkdir()
    (path / "copy.gguf").symlink_to(embedded_model())
    (path / "latin1.txt").write_bytes("Düsternis".encode("latin-1"))
    (path / "short.txt").write_text("Too short.")
    (path / "empty.txt").write_text("")
    (path / "broken.json").write_text('{"schema": "stratakv/prof')
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=72,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=72,
        )
    )
    model.save_pretrained(path / "head-dim-72")
    other = resolve("edges3", describe_model("embedded").geometry, fingerprint="0" * 64)
    save_profile(other, path / "other.json")
    return path


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("TURBO_LAYER_ADAPTIVE", raising=False)


BAD = [
    ((*SHOW, "-ctk", "turbo9"), ["'turbo9'", "turbo2", "q8_0_rot"]),
    ((*SHOW, "--layer-adaptive", "3"), ["unknown mode 3", "0, 1, 2, 5, 6, 7"]),
    ((*SHOW, "--layer-adaptive", "seven"), ["--layer-adaptive seven", "0, 1, 2, 5, 6 or 7"]),
    ((*SHOW, "--profile", "middle3: turbo4"), ["'middle3'", "firstN, lastN"]),
    ((*SHOW, "--profile", "nothing"), ["'nothing'", "edges3", "modeN"]),
    ((*SHOW, "--profile", "12: q8_0; rest: turbo4"), ["layer 12", "0 to 11"]),
    ((*SHOW, "--profile", "first13: turbo4"), ["first13", "1 to 12"]),
    ((*SHOW, "--profile", "0: turbo4"), ["1-11", "rest: TYPE"]),
    ((*SHOW, "--profile", "missing.json"), ["missing.json", "No such file"]),
    ((*SHOW, "--profile", "broken.json"), ["broken.json"]),
    ((*SHOW, "--profile", "other.json"), ["other.json", "0" * 12]),
    ((*SHOW, "-c", "0"), ["context 0", "at least 1"]),
    ((*SHOW, "-c", "many"), ["-c/--ctx-size", "'many'", "stratakv show --help"]),
    (("show",), ["-m/--model"]),
    ((*SHOW, "-ctk", ""), ["-ctk/--cache-type-k is empty", "leave it out"]),
    ((*COMPARE, "short.txt", ""), ["PROFILE is empty"]),
    (("tune", "-m", "copy.gguf", "--text", ""), ["--text is empty"]),
    (("bench", "generate", "--profile", ""), ["--profile is empty", "stratakv bench generate --help"]),
    ((*PERPLEXITY, "short.txt", "--json", ""), ["--json is empty"]),
    ((), ["COMMAND"]),
    (("shwo",), ["'shwo'", "'show'"]),
    ((*SHOW, "--frobnicate"), ["--frobnicate"]),
    (("show", "-m", "cut-header.gguf"), ["cut-header.gguf", "truncated"]),
    (("show", "-m", "cut-weights.gguf"), ["cut-weights.gguf", "truncated"]),
    (("show", "-m", "foreign.gguf"), ["foreign.gguf", "b'GGUF'"]),
    (("show", "-m", "directory"), ["directory", "config.json"]),
    (("show", "-m", "no/such/model"), ["no/such/model", "hub name"]),
    ((*SENSITIVITY, "-m", "x" * 300), ["-m xxx", "there is none"]),
    (("show", "-m", ""), ["''", "'embedded'"]),
    (("show", "-m", "head-dim-72", "-ctk", "turbo4", "-ctv", "turbo4"), ["72", "turbo4", "64"]),
    ((*GENERATE, "--profile", "other.json"), ["other.json", "0" * 12]),
    ((*GENERATE, "-b", "9" * 20), ["-b/--batch-size", "9" * 20, "too large"]),
    ((*GENERATE, "-s", "9" * 20), ["--seed " + "9" * 20, "2^63"]),
    ((*GENERATE, "-s", "many"), ["-s/--seed", "invalid int value", "'many'"]),
    (("bench", "tune", "-c", "9" * 20), ["-c '" + "9" * 20, "below 2^31"]),
    (("tune", "-m", "embedded", "--memory", "1GiB", "--context", "9" * 20), ["--context '" + "9" * 20, "at most"]),
    (("generate", "-m", "cut-weights.gguf", "-p", "x"), ["cut-weights.gguf", "truncated"]),
    ((*PERPLEXITY, "latin1.txt"), ["latin1.txt", "not UTF-8"]),
    ((*PERPLEXITY, "absent.txt"), ["absent.txt", "No such file"]),
    ((*PERPLEXITY, "directory"), ["directory", "Is a directory"]),
    ((*PERPLEXITY, "empty.txt"), ["empty.txt", "is empty"]),
    ((*PERPLEXITY, "short.txt", "--json", "p.json"), ["short.txt", "512", "smaller -c"]),
    ((*PERPLEXITY, "short.txt", "-c", "2"), ["-c 2", "at least 8"]),
    ((*COMPARE, "short.txt", "turbo4", "--json", "c.json", "--plot", "c.png"), ["short.txt", "512"]),
    ((*COMPARE, "short.txt", "turbo4", "--json", "absent/c.json"), ["absent/c.json", "absent"]),
    ((*COMPARE, "short.txt", "turbo4", "--plot", "c.gif"), ["c.gif", ".png or .svg"]),
    ((*COMPARE, "short.txt"), ["PROFILE"]),
    (("tune", "-m", "copy.gguf", "-c", "0"), ["-c 0", "at least 8"]),
    (("tune", "-m", "copy.gguf", "-c", "64", "--runs", "empty.txt"), ["empty.txt", "File exists"]),
    (("tune", "-m", "copy.gguf", "--far", "2"), ["--far 2", "0 (none) to 1"]),
    (("tune", "-m", "copy.gguf", "--out", "absent"), ["--out absent", "make it first"]),
    (("probe", "-m", "copy.gguf", "-c", "0"), ["-c 0", "at least 8"]),
    (("probe", "-m", "copy.gguf", "--limit", "nan"), ["--limit nan", "finite"]),
    (("judge", "turbo4", "-m", "embedded", "-f", "short.txt"), ["turbo4", "stratakv tune"]),
    ((*SENSITIVITY, "-t", "0"), ["-t 0", "at least 1"]),
    (("bench", "attention", "--seconds", "nan"), ["--seconds nan", "0 or more"]),
    (("bench", "serve", "--rate", "nan"), ["--rate nan", "above 0"]),
    (("bench", "serve", "--each", "0"), ["--each 0", "at least 1"]),
    (("bench", "busy", "--seconds", "-1"), ["--seconds -1", "0 or more"]),
    (("bench", "generate", "--seconds", "inf"), ["--seconds inf", "finite"]),
    (("demo", "--out", "absent"), ["absent"]),
    (("demo", "--chunks", "0"), ["--chunks 0", "at least 1"]),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) or "nothing" for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, place, capsys):
    before = sorted(place.rglob("*"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("stratakv: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert not out
    assert [words for words in said if words not in err] == []
    assert sorted(place.rglob("*")) == before


def test_a_context_beyond_the_models_is_a_warning_with_the_reason(capsys):
    assert main([*SHOW, "-c", "5000"]) == 0
    assert "context 5000 is beyond the model's 4096: it was not trained on later positions" in capsys.readouterr().out


def test_version_and_help(capsys):
    for arguments, text in (
        (["--version"], __version__),
        (["--help"], "perplexity"),
        (["show", "-h"], "--layer-adaptive"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert text in capsys.readouterr().out


def test_every_command_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["-h"])
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in out] == []


def test_interrupted_before_anything_ran(monkeypatch, capsys):
    def interrupted(source):
        raise KeyboardInterrupt

    monkeypatch.setattr("stratakv.engine.describe.describe_model", interrupted)
    assert main(list(SHOW)) == 130
    assert capsys.readouterr().err == "stratakv: interrupted\n"


def started(*arguments: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "stratakv", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # a test run in the background ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_process_ends_with_its_last_line():
    """Nothing comes after the closing line: no library reports leaks or threads when the interpreter ends."""
    process = started(*GENERATE, "-n", "2", "-ctk", "turbo4", "-ctv", "q8_0", "--recent", "0")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    *weights, profile, last = err.decode().splitlines()
    assert all(line.startswith(("stratakv generate: reading embedded", "weights ", "  ")) for line in weights)
    assert "profile turbo4/q8_0" in profile and last.startswith("[prompt ")


def test_ctrl_c_while_it_streams():
    process = started(*GENERATE, "-n", "4000", "--temp", "0")  # the likeliest text never ends; a drawn one may
    assert process.stdout is not None
    process.stdout.read(2)  # the prompt and a newline or a letter: generation runs
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.endswith(b"stratakv: interrupted\n")
    assert b"Traceback" not in err


def test_a_reader_that_has_seen_enough():
    process = started(*GENERATE, "-n", "4000", "--temp", "0")  # the likeliest text never ends; a drawn one may
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=300) == 0
    assert b"Traceback" not in err and b"BrokenPipe" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk without room, on this system")
@pytest.mark.parametrize("arguments", [SHOW, (*SHOW, "--json", "/dev/full"), ("--version",), ("show", "--help")])
def test_a_full_disk_is_one_line(arguments):
    environ = dict(os.environ)
    environ.pop("PYTHONUNBUFFERED", None)  # with it argparse hides errors of --help
    command = [sys.executable, "-m", "stratakv", *arguments]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environ)
    lines = [line for line in process.stderr.splitlines() if not line.startswith("stratakv show: reading")]
    assert process.returncode == 2
    assert len(lines) == 1 and lines[0].startswith("stratakv: error: cannot write") and "No space left" in lines[0]


def _more_than_there_is(_):
    torch.empty(2**60, dtype=torch.uint8)


def _more_than_the_system_gives(_):
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def _more_than_python_has(_):
    bytearray(2**62)


@pytest.mark.parametrize("run", [_more_than_there_is, _more_than_the_system_gives, _more_than_python_has])
def test_too_little_memory_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr("stratakv.cli.show.run", run)
    assert main(SHOW) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stratakv: error: there is not enough memory")


def test_show_ends_with_its_table():
    process = started(*SHOW, "-ctk", "turbo4", "-ctv", "q8_0")
    out, err = process.communicate(timeout=300)
    # the last lines say which kernels read the pages; the very last one of a GPU, where Triton is installed
    last = [line for line in out.decode().splitlines() if not line.startswith("on an NVIDIA GPU")][-1]
    assert process.returncode == 0 and last.startswith("attention reads")
    assert all(line.startswith("stratakv show: reading") for line in err.decode().splitlines())
