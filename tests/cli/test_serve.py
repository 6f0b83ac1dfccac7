"""`stratakv serve`: the line that the project began with, the newcomers' page as it stands, the end, and what is refused."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from servers import embedded

from stratakv.cli import serve
from stratakv.cli.main import main
from stratakv.engine import load

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def blocks(language: str) -> list[str]:
    """The page's fenced blocks of a language."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@contextmanager
def started(line: str, port: int, directory: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command line as a process; (the process, what it has said until it listens)."""
    words = shlex.split(line)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    environment.pop("TURBO_LAYER_ADAPTIVE", None)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    assert words.pop(0) == "stratakv"
    command = [sys.executable, "-m", "stratakv", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=directory)
    said: list[str] = []
    try:
        assert process.stderr is not None
        for text in process.stderr:
            said.append(text)
            if text.startswith("listening on"):
                break
        assert said and said[-1] == f"listening on http://127.0.0.1:{port}\n", "".join(said)
        yield process, said
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], seconds: float = 20) -> str:
    """What the process says to its end; AssertionError for an exit code other than 0."""
    out = process.communicate(timeout=seconds)[1]
    assert process.returncode == 0, out
    return out


def test_the_newcomers_page(tmp_path, capfd):
    """The first command of the page, then its curl lines and its Python, on another port; then SIGTERM while one runs."""
    port = free_port()
    (first, *_) = blocks("sh")
    assert first.strip() == "TURBO_LAYER_ADAPTIVE=7 stratakv serve -m embedded -ctk turbo4 -ctv turbo4 --port 11434"
    with started(first.replace("11434", str(port)), port, tmp_path) as (process, said):
        text = "".join(said)
        assert "2-9    2-9       full  turbo4  turbo2  200 each" in text
        assert "3,216 bytes a token" in text and "warning: mode 7 ignores -ctv turbo4" in text
        size = "61.69 MiB (3,216 bytes a token; 14.58 MiB are fine pages of spans)"
        assert f"cache: 16,384 tokens in {size}, up to 4,096 a request, 4 slots" in text
        lines = [
            line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl") and "11434" in line
        ]
        assert len(lines) == 3
        for line in lines:
            answer = subprocess.run(
                [*shlex.split(line.replace("11434", str(port))), "-sf"],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert answer.stdout.strip().endswith("}")
        for code in blocks("python"):
            exec(compile(code.replace("11434", str(port)), str(PAGE), "exec"), {})
        out = capfd.readouterr().out
        assert "CompletionUsage(" in out and "strata-8m-q8_0:latest" in out

        body = {"prompt": "The night was", "n_predict": 300, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"http://127.0.0.1:{port}/completion", json=body, timeout=60) as answer:
            pieces = answer.iter_lines()
            next(pieces)
            process.send_signal(signal.SIGTERM)
            *_, last = [piece for piece in pieces if piece]  # what runs is finished
        assert '"stop":true' in last and '"tokens_predicted":300' in last
        assert ended(process) == "stopped\n"


@pytest.mark.slow
def test_saving_a_slot_by_the_page(tmp_path):
    port = free_port()
    commands = next(block for block in blocks("sh") if "mkdir" in block).splitlines()
    curls = next(block for block in blocks("sh") if "action=save" in block).splitlines()
    subprocess.run(shlex.split(commands[0]), cwd=tmp_path, check=True)
    with started(f"{commands[1]} --port {port}", port, tmp_path) as (process, said):
        assert any("profile edges3" in line for line in said)
        for line in curls:
            long = line.replace("beginning ...", "beginning. " * 200).replace("8080", str(port))
            subprocess.run([*shlex.split(long), "-sf"], capture_output=True, timeout=60, check=True)
        assert [path.name for path in (tmp_path / "slots").iterdir()] == ["beginning.bin"]
        process.send_signal(signal.SIGINT)
        assert ended(process) == "stopped\n"


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of a refusal."""
    assert main(["serve", "-m", "embedded", "--port", "0", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("stratakv: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-np", "0"], "-np/--parallel 0: it must be 1"),
        (["-c", "-1"], "-c/--ctx-size -1"),
        (["-b", "0"], "-b/--batch-size 0"),
        (["-n", "0"], "-n/--n-predict 0"),
        (["-t", "0"], "-t/--threads 0"),
        (["--port", "70000"], "--port 70000: it must be 0 to 65535"),
        (["--grace", "nan"], "--grace nan"),
        (["--host", "no such host"], "--host no such host"),
        (["--slot-save-path", "/nowhere/at/all"], "there is no such directory"),
        (["--slot-save-path", "/proc"], "--slot-save-path /proc"),
        (["-t", "1025"], "1 to 1024"),
        (["--cache-memory", "much"], "--cache-memory 'much': a positive size with its unit"),
        (["--cache-memory", "1KB"], "holds 0 tokens"),
        (["-ngl", "many"], "-ngl/--n-gpu-layers many: it must be a number, all or auto"),
        (["-fa", "maybe"], "-fa/--flash-attn maybe: it must be on, off or auto"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key", " , "], "--api-key ' , '"),
        (["--host", "192.0.2.1"], "--host takes an address of this machine"),
        (["--nonsense"], "stratakv serve --help shows what is allowed"),
        (["--device", "abacus"], "--device abacus: it must be cpu, cuda"),
        (["-ctk", "q9"], "q9"),
        (
            ["-ctk", "turbo4", "--recent", "2", "--first", "1", "-c", "256"],
            "spans of 3 pages (384 tokens) are longer than the context of 256 tokens",
        ),
        (["--cors-origins", "chat.example"], "--cors-origins 'chat.example': an origin is SCHEME://HOST"),
        (["--allowed-hosts", "http://x"], "--allowed-hosts 'http://x': names such as box.example"),
        (["-c", "1000000000"], "GiB are free beside the weights: give a smaller -c"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(capsys, options, says):
    assert says in refused(capsys, *options)


def test_a_port_in_use_is_known_before_the_model_is_read(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        begin = time.monotonic()
        assert "--port chooses another" in refused(capsys, "--port", port)
        assert time.monotonic() - begin < 2


def test_the_extra_is_named_when_it_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(serve, "_EXTRA", ("fastapi", "no_such_package"))
    assert "serve needs no_such_package: pip install 'stratakv[serve]'" in refused(capsys)


def test_hosts_that_others_can_reach_are_warned_about(capsys, monkeypatch):
    monkeypatch.setattr(serve, "_serve", lambda app, listener, args: 0)
    monkeypatch.setattr(load, "load_model", lambda source, **_: embedded())
    options = ["serve", "-m", "embedded", "--port", "0", "-c", "256", "-ngl", "99"]
    assert main([*options, "--host", "0.0.0.0"]) == 0
    err = capsys.readouterr().err
    assert "warning: --host 0.0.0.0 is reachable from other machines and there is no --api-key" in err
    assert "-ngl 99 is ignored" in err or "cuda" in err
    assert main([*options, "--host", "0.0.0.0", "--api-key", "k"]) == 0
    assert "reachable" not in capsys.readouterr().err
    monkeypatch.setenv("LLAMA_API_KEY", "from-the-environment")
    assert main([*options, "--host", "0.0.0.0"]) == 0
    assert "reachable" not in capsys.readouterr().err


def test_a_template_that_does_not_compile_is_named_at_the_start(capsys, monkeypatch):
    monkeypatch.setattr(serve, "_serve", lambda app, listener, args: 0)
    monkeypatch.setattr(load, "load_model", lambda source, **_: embedded())
    monkeypatch.setattr(embedded().tokenizer, "chat_template", "{% if %}")
    assert main(["serve", "-m", "embedded", "--port", "0", "-c", "256", "--cors-origins", "*"]) == 0
    err = capsys.readouterr().err
    assert "warning: the model's chat template does not compile (line 1: Expected an expression" in err
    assert "warning: --cors-origins * without --api-key" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback(host):
    assert serve._is_loopback(host) and not serve._is_loopback("192.168.0.1") and not serve._is_loopback("example.org")
