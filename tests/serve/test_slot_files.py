"""Slots on disk: back byte by byte, refused when anything differs, never half there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import GREEDY, answers, check_same, tokens_of

from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS as PAGE
from stratakv.serve.request import GenerationRequest
from stratakv.serve.slot_files import LAYOUT, MAGIC

PROMPT_TOKENS = 2 * PAGE + 44


@pytest.fixture
def saved(engines: Any, text_ids: list[int], tmp_path: Path) -> tuple[Any, Path, Any]:
    """An engine, a file with the slot of a prompt of PROMPT_TOKENS, and the answer to the prompt."""
    engine = engines("edges3", slots=2)
    answer = answers(engine, [GenerationRequest(tuple(text_ids[:PROMPT_TOKENS]), 8, GREEDY, slot=1)])[0]
    path = tmp_path / "slot.bin"
    result = asyncio.run(engine.save_slot(1, path))
    assert (result.tokens, result.nbytes) == (2 * PAGE, path.stat().st_size)
    return engine, path, answer


def test_restored_pages_answer_as_before(saved: Any, engines: Any, text_ids: list[int]) -> None:
    engine, path, (_, theirs, _) = saved
    fresh = engines("edges3", slots=2, own=True)
    assert asyncio.run(fresh.restore_slot(0, path)).tokens == 2 * PAGE
    assert fresh.snapshot().pages_cached == 2 and fresh.snapshot().pages_used == 0
    (_, ours, finish) = answers(fresh, [GenerationRequest(tuple(text_ids[:PROMPT_TOKENS]), 8, GREEDY)])[0]
    assert finish.cached_tokens == 2 * PAGE
    check_same(tokens_of(ours), tokens_of(theirs))
    for olds, news in zip(engine.cache.runner.pools, fresh.cache.runner.pools, strict=True):
        for old, new in zip(olds, news, strict=True):
            pages = torch.tensor([0, 1])
            assert torch.equal(old.read(pages), new.read(pages))
    again = path.with_name("again.bin")
    asyncio.run(fresh.save_slot(0, again))
    assert again.read_bytes() == path.read_bytes()


def test_erased_slots_are_empty(saved: Any, text_ids: list[int]) -> None:
    engine, path, _ = saved
    assert asyncio.run(engine.erase_slot(1)) == PROMPT_TOKENS
    assert engine.snapshot().pages_cached == 0
    with pytest.raises(UserError, match="nothing to save"):
        asyncio.run(engine.save_slot(1, path))
    with pytest.raises(UserError, match="slots 0 to 1"):
        asyncio.run(engine.erase_slot(2))


def test_files_that_do_not_fit_are_refused_with_the_reason(saved: Any, engines: Any, tmp_path: Path) -> None:
    engine, path, _ = saved
    data = path.read_bytes()
    wrong = {
        "truncated": [data[:-1], data[: len(data) // 2], data[:40], data[:9]],
        "damaged": [data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], data + b"x"],
        "no slot file": [b"nonsense" * 9],
    }
    for reason, contents in wrong.items():
        for content in contents:
            bad = tmp_path / "bad.bin"
            bad.write_bytes(content)
            with pytest.raises(UserError, match=reason):
                asyncio.run(engine.restore_slot(0, bad))
    with pytest.raises(UserError, match="cannot read"):
        asyncio.run(engine.restore_slot(0, tmp_path / "missing.bin"))
    other = engines("turbo4", slots=1)
    with pytest.raises(UserError, match="layer 0, K: saved as q8_0 .version 1.*this server stores turbo4"):
        asyncio.run(other.restore_slot(0, path))
    changed = tmp_path / "model.bin"
    fingerprint = engine.loaded.fingerprint.encode()
    changed.write_bytes(data.replace(fingerprint, fingerprint[::-1]))
    with pytest.raises(UserError, match="another model"):
        asyncio.run(engine.restore_slot(0, changed))
    weights = engine.cache.weights.encode()
    changed.write_bytes(rewritten(data, weights, weights[::-1]))
    with pytest.raises(UserError, match="other weights of the same shapes"):
        asyncio.run(engine.restore_slot(0, changed))
    assert all(pool.used == 0 for pool in engine.cache.pools)


def rewritten(data: bytes, old: bytes, new: bytes) -> bytes:
    """A file whose header says something else, whole otherwise."""
    start = len(MAGIC) + 8
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    header = data[start:end]
    assert header.count(old) == 1
    header = header.replace(old, new)
    body = MAGIC + len(header).to_bytes(8, "little") + header + data[end:-32]
    return body + hashlib.sha256(body).digest()


def test_the_layout_of_a_file_is_checked_by_its_name(saved: Any, engines: Any) -> None:
    _, path, _ = saved
    data, name = path.read_bytes(), f'"layout": "{LAYOUT}", '.encode()
    fresh = engines("edges3", slots=2, own=True)
    unnamed = rewritten(data, name, b"")
    path.write_bytes(unnamed)
    assert asyncio.run(fresh.restore_slot(0, path)).tokens == 2 * PAGE, "a file of a version without names"
    refused = {
        f"canonical{PAGE}-v2": rewritten(data, LAYOUT.encode(), f"canonical{PAGE}-v2".encode()),
        f"canonical{PAGE // 2}-v1": rewritten(unnamed, *(f'"page_tokens": {n}'.encode() for n in (PAGE, PAGE // 2))),
        f"tile{PAGE}-v1": rewritten(data, LAYOUT.encode(), f"tile{PAGE}-v1".encode()),
    }
    assert f"canonical{PAGE}-v1" == LAYOUT
    for theirs, contents in refused.items():
        path.write_bytes(contents)
        with pytest.raises(UserError, match=f"laid out as {theirs}, this version reads {LAYOUT}: save the slot again"):
            asyncio.run(fresh.restore_slot(1, path))


def test_layers_that_are_no_objects_are_damage(saved: Any) -> None:
    engine, path, _ = saved
    data = path.read_bytes()
    start = len(MAGIC) + 8
    header = json.loads(data[start : start + int.from_bytes(data[len(MAGIC) : start], "little")])
    first = json.dumps(header["layers"][0]).encode()
    layers = json.dumps(header["layers"]).encode()
    for bad in (b"7", b"null", b'"k"', b"[]"):
        path.write_bytes(rewritten(data, layers, layers.replace(first, bad, 1)))
        with pytest.raises(UserError, match="it is damaged: its header can't be read"):
            asyncio.run(engine.restore_slot(0, path))


_SAVER = """
import asyncio, sys
from stratakv.engine.load import load_model
from stratakv.profile import resolve
from stratakv.serve.engine import Engine
from stratakv.serve.request import GenerationRequest, Limits
from stratakv.serve.samplers import SamplingParams
from stratakv.serve.ticket import collect

async def main():
    loaded = load_model("embedded")
    engine = Engine(loaded, resolve("f32", loaded.geometry), Limits(slots=1, context=1024, cache_bytes=2**26))
    engine.start()
    await collect(engine.submit(GenerationRequest(tuple(range(10, 610)), 1, SamplingParams(temperature=0))))
    print("saving", flush=True)
    while True:
        await engine.save_slot(0, sys.argv[1])

asyncio.run(main())
"""


def test_a_kill_while_saving_leaves_the_old_file_whole(tmp_path: Path, engines: Any) -> None:
    path = tmp_path / "slot.bin"
    with subprocess.Popen([sys.executable, "-c", _SAVER, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "saving\n"
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        while not list(tmp_path.glob(".slot.bin.*.tmp")) and time.monotonic() < deadline:
            pass
        os.kill(child.pid, signal.SIGKILL)
    reader = engines("f32", slots=1)
    assert asyncio.run(reader.restore_slot(0, path)).tokens == 600 // PAGE * PAGE


def test_a_restore_that_nobody_waits_for_keeps_its_pages_until_they_are_written(saved: Any) -> None:
    """They were free while a thread still wrote into them: another request's, by then."""
    engine, path, _ = saved
    gate, used = threading.Event(), list[list[int]]()
    write = engine.cache.write

    def slowly(held: Any, states: Any) -> None:
        assert gate.wait(30)
        used.append([pool.used for pool in engine.cache.pools])
        write(held, states)

    async def left() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.restore_slot(0, path), 0.2)
        gate.set()
        while any(pool.used for pool in engine.cache.pools):
            await asyncio.sleep(0.01)

    engine.cache.write = slowly
    try:
        asyncio.run(left())
    finally:
        del engine.cache.write
    assert used and all(used[0])


@pytest.mark.parametrize("tokens", [float("inf"), 1e300, -PAGE, 10**12 * PAGE])
def test_numbers_of_tokens_that_can_not_be(saved: Any, tokens: float) -> None:
    engine, path, _ = saved
    content = path.read_bytes()
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 8], "little")
    header = json.loads(content[len(MAGIC) + 8 : len(MAGIC) + 8 + length])
    text = json.dumps({**header, "tokens": tokens}).encode()
    path.write_bytes(MAGIC + len(text).to_bytes(8, "little") + text + content[len(MAGIC) + 8 + length :])
    with pytest.raises(UserError, match="it is damaged"):
        asyncio.run(engine.restore_slot(0, path))
