"""The same file in llama.cpp and here: logits beside the exact ones, perplexity, greedy text. Needs the extra `gguf`.

Both sides round activations to 8 bits for packed matrices. Each rounding that a sum's last bit turns over turns over others after
it, so that two programs with the same rules part: logits of this model in Q8_0 lie 0.0199 (root of the mean square) from
the exact ones, in llama.cpp and here, and 0.0217 from each other. So each side is judged by the exact logits: ours may lie no
farther from them than llama.cpp's, whose distance must be what rounding activations alone gives.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Logits:
    """Of the same tokens, float32 [places, vocabulary]. exact: unpacked weights, nothing rounded, K and V in f32; rounded: the
    same with the activations rounded as llama.cpp does, and K and V in f16; following: the token after each place."""

    ours: np.ndarray
    theirs: np.ndarray
    exact: np.ndarray
    rounded: np.ndarray
    following: list[int]


@needs_shared
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M", "stories"])
def test_logits_are_as_near_to_the_exact_ones_as_llama_cpp_s(files: dict[str, Path], kind: str) -> None:
    found = measured(files[kind], files[kind], kind)
    judge(found)
    perplexities = (perplexity_of(rows, found.following) for rows in (found.ours, found.theirs))
    assert next(perplexities) == pytest.approx(next(perplexities), rel=0.003)


@needs_shared
@pytest.mark.parametrize("fault", ["one scale of 32 weights", "one row for another", "codes without their lowest bits"])
def test_a_fault_is_found(files: dict[str, Path], tmp_path: Path, fault: str) -> None:
    """The judge isn't blind: each of these in our file makes it fail."""
    broken = damaged(files["Q8_0"], tmp_path / "broken.gguf", fault)
    with pytest.raises(AssertionError, match="farther from the exact logits"):
        judge(measured(broken, files["Q8_0"], "Q8_0"))


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


def measured(path: Path, right: Path, kind: str, new: int = 100) -> Logits:
    """The logits of four pieces of text, read at once, and of a greedy text, read token by token as llama.cpp goes on.

    path: our file; right: llama.cpp's, and the exact one.
    """
    from llama_files import LlamaCpp

    loaded = load_model(path)
    assert loaded.packed is not None and not loaded.packed.unpacked
    exact, rounded = (load_model(right, packed=False).model for _ in range(2))
    round_activations(rounded, kind)
    models = ((loaded.model, "f16"), (exact, "f32"), (rounded, "f16"))
    theirs = LlamaCpp(right, 512)
    rows: list[list[np.ndarray]] = [[], [], [], []]
    following: list[int] = []

    def read(ids: list[int], start: int, caches: list[KVCache]) -> np.ndarray:
        with torch.inference_mode():
            for (model, _), cache, kept in zip(models, caches, rows, strict=False):
                kept.append(model(torch.tensor([ids]), past_key_values=cache).logits[0].float().numpy())
        rows[3].append(theirs.logits(ids, start))
        return rows[3][-1][-1]

    def caches() -> list[KVCache]:
        return [KVCache(model.config, profile) for model, profile in models]

    chunk = CHUNK if kind != "stories" else 200
    text = _story() if kind == "stories" else read_text(judging_text()).content[:20000]
    ids = loaded.tokenizer(text).input_ids[: CHUNKS * chunk]
    for at in range(0, len(ids) - len(ids) % chunk, chunk):
        best = read(ids[at : at + chunk], 0, caches())
        following += [*ids[at + 1 : at + chunk], int(best.argmax())]
    feed, kept, position = loaded.tokenizer("Once upon a time, there was a").input_ids, caches(), 0
    for _ in range(new):
        best = read(feed, position, kept)
        position += len(feed)
        following += [*feed[1:], int(best.argmax())]
        feed = following[-1:]
    theirs.close()
    ours, exactly, roundly, llama = (np.concatenate(each) for each in rows)
    return Logits(ours, llama, exactly, roundly, following)


def judge(found: Logits) -> None:
    """AssertionError where ours lie farther from the exact logits than llama.cpp's, those farther than rounding explains, or
    where our best token isn't the exact one and no tie."""
    ours, theirs, explained = (rms(rows - found.exact) for rows in (found.ours, found.theirs, found.rounded))
    # The mean over pieces of 32 places has an error that llama.cpp's own pieces tell: 4 standard errors of a difference
    pieces = np.array([rms(part) for part in np.array_split(found.theirs - found.exact, len(found.exact) // 32)])
    slack = 4 * float(pieces.std(ddof=1)) * (2 / len(pieces)) ** 0.5
    assert theirs <= explained + slack, (
        f"llama.cpp's lie {theirs:.5f} from the exact logits, rounding gives {explained:.5f}"
    )
    assert ours <= theirs + slack, (
        f"{ours:.5f} is farther from the exact logits than llama.cpp's {theirs:.5f} + {slack:.5f}"
    )
    # Two logits move by sqrt(2) of one's error against each other; 5 standard deviations: 1 in 3 million
    places = np.arange(len(found.exact))
    lost = found.exact.max(-1) - found.exact[places, found.ours.argmax(-1)]
    tie = 5 * 2**0.5 * theirs
    assert lost.max() <= tie, (
        f"place {lost.argmax()}: our best token is {lost.max():.5f} farther from the exact logits' best"
    )


def rms(values: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def perplexity_of(rows: np.ndarray, following: list[int]) -> float:
    from llama_files import perplexity

    return perplexity(rows, following)


def round_activations(model: Any, kind: str) -> None:
    """What a matrix multiplies is rounded: to f16 for such files, else to 8 bits in blocks of 32, of 256 in types with those."""

    def rounding(_: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (x,) = given
        if kind in ("F16", "stories"):
            return (x.half().float(),)
        blocks = x.unflatten(-1, (-1, 256 if kind == "Q4_K_M" and x.shape[-1] % 256 == 0 else 32))
        step = blocks.abs().amax(-1, keepdim=True) / 127
        return (((blocks / step.clamp(min=1e-30)).round() * step.half().float()).flatten(-2),)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounding)


def damaged(source: Path, target: Path, fault: str) -> Path:
    """A copy of a Q8_0 file with a fault: in one matrix of the sixth layer, or in all codes."""
    import gguf

    data = np.fromfile(source, dtype=np.uint8)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}

    def blocks(tensor: Any) -> np.ndarray:
        """[rows, blocks, 34]: a scale in f16, 32 codes."""
        stored = data[tensor.data_offset : tensor.data_offset + tensor.n_bytes]
        return stored.reshape(int(tensor.shape[1]), -1, 34)

    one = blocks(tensors["blk.5.ffn_down.weight"])
    if fault == "one scale of 32 weights":
        scale = one[0, 0, :2].view(np.float16)
        scale *= 8
    elif fault == "one row for another":
        one[[0, 1]] = one[[1, 0]]
    else:
        for tensor in tensors.values():
            if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
                blocks(tensor)[..., 2:] &= 0xFE
    data.tofile(target)
    return target


def _story() -> str:
    return (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her friends. "
        "One day, she saw a big dog. The dog was very happy and wanted to play with her. Lily said, Hello, dog! Do you "
        "want to play with me? The dog wagged its tail and ran to her. They played all day long and had a lot of fun. "
    ) * 12
