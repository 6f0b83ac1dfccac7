"""The same file in llama.cpp and here: perplexity, greedy text. Needs the extra `gguf`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp_writer import WRITERS, write

from stratakv import KVCache, load_model
from stratakv.assets import judging_text
from stratakv.measure.corpus import read_text
from stratakv.weights import ggml

pytestmark = [
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs the extra `gguf`: llama-cpp-python"),
    pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}"),
]
SHARED = Path(__file__).resolve().parents[2].parent / "shared"
STRATA, STORIES = SHARED / "models" / "strata-8m", SHARED / "models" / "stories260Ktok512.gguf"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the models of ../shared are not at hand")
CHUNK, CHUNKS = 256, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import gguf
    from llama_files import quantize
    from make_embedded_model import write_gguf

    folder = tmp_path_factory.mktemp("gguf")
    source = folder / "f32.gguf"
    write_gguf(STRATA, source, "strata-8m", gguf.GGMLQuantizationType.F32)
    kinds = ("F16", "Q8_0", "Q4_K_M")
    return {**{kind: quantize(source, folder / f"{kind}.gguf", kind) for kind in kinds}, "stories": STORIES}


@needs_shared
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M", "stories"])
def test_perplexity_and_greedy_text_are_llama_cpp_s(files: dict[str, Path], kind: str) -> None:
    from llama_files import LlamaCpp, perplexity

    loaded = load_model(files[kind])
    assert loaded.packed is not None and not loaded.packed.unpacked
    model: Any = loaded.model
    chunk = CHUNK if kind != "stories" else 200
    text = _story() if kind == "stories" else read_text(judging_text()).content[:20000]
    ids = loaded.tokenizer(text).input_ids
    theirs = LlamaCpp(files[kind], 512)
    ours_rows, their_rows, following = [], [], []
    for number in range(CHUNKS):
        piece = ids[number * chunk : (number + 1) * chunk]
        if len(piece) < chunk:
            break
        cache = KVCache(model.config, "f16")
        with torch.inference_mode():
            ours_rows.append(model(torch.tensor([piece]), past_key_values=cache).logits[0, :-1].float().numpy())
        their_rows.append(theirs.logits(piece, 0)[:-1])
        following += piece[1:]
    ours, reference = (perplexity(np.concatenate(rows), following) for rows in (ours_rows, their_rows))
    assert ours == pytest.approx(reference, rel=0.003)
    prompt = loaded.tokenizer("Once upon a time, there was a").input_ids
    assert_same_greedy(model, theirs, prompt, 100)
    theirs.close()


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_the_tests_write_are_llama_cpp_s(name: str, tmp_path: Path) -> None:
    """What `test_llama_cpp_files.py` reads means to llama.cpp what it means to us."""
    from llama_files import LlamaCpp

    # llama.cpp rounds where YaRN's ramp begins and ends, GPT-OSS's own config doesn't, and no field says so
    rope = {**WRITERS[name][2].get("rope_parameters", {}), "truncate": True}
    more = {"rope_parameters": rope} if name == "gpt-oss" else {}
    model = write(tmp_path / "m.gguf", name, "F32", "F32", **more)
    ids = torch.randint(3, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    theirs = LlamaCpp(tmp_path / "m.gguf", 512)
    rows = torch.from_numpy(theirs.logits(ids[0].tolist(), 0))
    theirs.close()
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits[0]
    assert float(((expected - rows).norm(dim=-1) / expected.norm(dim=-1)).max()) < 0.02  # its cache has 16 bits


def assert_same_greedy(model: Any, theirs: Any, prompt: list[int], new: int) -> None:
    """Token by token the same choice; where it isn't, the two choices are a tie in llama.cpp's logits."""
    cache = KVCache(model.config, "f16")
    position, feed = 0, prompt
    for _ in range(new):
        with torch.inference_mode():
            logits = model(torch.tensor([feed]), past_key_values=cache).logits[0, -1]
        row = theirs.logits(feed, position)[-1]
        position += len(feed)
        mine, best = int(logits.argmax()), int(row.argmax())
        assert mine == best or float(row[best] - row[mine]) < 1e-3, f"token {position}: {row[best] - row[mine]} apart"
        feed = [best]


def _story() -> str:
    return (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her friends. "
        "One day, she saw a big dog. The dog was very happy and wanted to play with her. Lily said, Hello, dog! Do you "
        "want to play with me? The dog wagged its tail and ran to her. They played all day long and had a lot of fun. "
    ) * 12
