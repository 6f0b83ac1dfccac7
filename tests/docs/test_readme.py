"""README and docs say what is so: their snippets run, their commands and options exist, their table of types is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from documented_types import documented

from stratakv import kv_type, type_names
from stratakv.assets import judging_text
from stratakv.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Options of pip and of vLLM
ELSEWHERE = {
    "--no-deps",
    "--block-size",
    "--disable-hybrid-kv-cache-manager",
    "--enforce-eager",
    "--kv-cache-dtype",
    "--pipeline-parallel-size",
    "--tensor-parallel-size",
    "--compilation-config",
}
SNIPPETS = [ROOT / "README.md", ROOT / "docs" / "python.md", ROOT / "docs" / "kv-types.md"]


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of that language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [body for given, body in found if given == language]


def command_lines(page: Path) -> list[list[str]]:
    """The words of each `stratakv ...` line in plain blocks; "$ " before it, a comment after it, and a trailing \\ are read."""
    text = "\n".join(blocks(page)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("stratakv ")]


@pytest.mark.parametrize("page", SNIPPETS, ids=lambda page: page.name)
def test_python_runs(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    code = blocks(page, "python")
    assert code
    for block in code:
        exec(compile(block, str(page), "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", command_lines(ROOT / "README.md"), ids=" ".join)
def test_readmes_commands_run(words, tmp_path, monkeypatch, capsys):
    """On the embedded model and a piece of its text, cut short."""
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text(judging_text().read_text(encoding="utf-8")[:2000], encoding="utf-8")
    words = ["embedded" if word == "MODEL" else word for word in words]
    words = [str(text) if before == "-f" else word for before, word in zip(["", *words], words, strict=False)]
    words = ["32" if before == "-c" else word for before, word in zip(["", *words], words, strict=False)]
    words += {"compare": ["--chunks", "1"], "generate": ["-n", "3"]}.get(words[0], [])
    if "--chunks" in words:
        words[words.index("--chunks") + 1] = "1"
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    return {}


def help_of(command: str, helps: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    if command not in helps:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        helps[command] = capsys.readouterr().out
    return helps[command]


def test_every_command_has_help(helps, capsys):
    for command in COMMANDS:
        assert "--help" in help_of(command, helps, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_and_options_exist(page, helps, capsys):
    """In commands: that command's options. Alone in backquotes: any command's."""
    text = page.read_text(encoding="utf-8")
    spans = [span for span in re.findall(r"`([^`\n]+)`", text) if span.startswith(("stratakv ", "-"))]
    lines = [shlex.split(span)[1:] for span in spans if span.startswith("stratakv ")] + command_lines(page)
    for words in lines:
        assert words[0] in COMMANDS, f"stratakv {words[0]}"
        for option in filter(is_option, words):
            assert option in options(help_of(words[0], helps, capsys)), f"stratakv {' '.join(words)}: {option}"
    known = set().union(*(options(help_of(command, helps, capsys)) for command in COMMANDS), ELSEWHERE)
    alone = [word for span in spans if span.startswith("-") for word in span.split() if is_option(word)]
    assert [word for word in alone if word not in known] == []


def is_option(word: str) -> bool:
    return re.fullmatch(r"--?[a-z][a-z-]*", word) is not None


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"\bmake ([a-z-]+)(?=`|\s+#|$)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, page.name


def test_links_lead_to_files():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_table_of_types_is_complete_and_right():
    rows = documented()
    assert list(rows) == list(type_names())
    for name, row in rows.items():
        type_ = kv_type(name)
        fields = type_.fields(128)
        values = 128 if fields[0].kind == "float" else 1  # a float's block is one value
        assert row.bytes * values == sum(field.nbytes for field in fields), name
        assert row.bits == (type_.bits_per_value(128), type_.bits_per_value(64)), name


def test_readmes_table_has_the_types_bits():
    head_dims, head_dim, seen = {"SmolLM2-135M-Instruct": 64, "Gemma-3-270M": 256}, 0, set()
    for name, bits in re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", (ROOT / "README.md").read_text("utf-8"), re.M):
        if name.endswith(", f16"):
            head_dim = head_dims[name.removesuffix(", f16")]
        elif name in type_names():
            assert float(bits) == pytest.approx(kv_type(name).bits_per_value(head_dim), abs=1e-3), name
            seen.add((name, head_dim))
    assert seen == {(name, dim) for name in ("turbo4", "q4_0_rot", "q8_0") for dim in head_dims.values()}
