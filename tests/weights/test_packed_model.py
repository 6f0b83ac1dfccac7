"""Models whose matrices stay in the file: against the same file unpacked, and everything that runs beside them."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import nn

from stratakv import KVCache, UserError, load_model
from stratakv.assets import embedded_model
from stratakv.weights import ggml
from stratakv.weights.mapped_file import MappedFile
from stratakv.weights.modules import Gated, PackedEmbedding, PackedExperts, PackedLinear
from stratakv.weights.packed import KeptResults, PackedTensor, Product

pytestmark = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}")
IDS = torch.tensor([[5, 99, 1203, 7, 812, 4000, 33, 21]])


def tensor(
    tmp_path: Path, values: np.ndarray, name: str = "Q8_0", place: Any = None
) -> tuple[PackedTensor, torch.Tensor]:
    """A matrix in a file of its own, and what is in it."""
    type_ = GGMLQuantizationType[name]
    packed = quantize(values.astype(np.float32), type_)
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
    path.write_bytes(b"head" * 8 + packed.tobytes())
    stored = PackedTensor(MappedFile(path), "t", type_, values.shape, 32, packed.nbytes, place)
    rows = torch.from_numpy(dequantize(packed, type_).copy())
    if place is not None:
        moved = torch.empty_like(rows)
        moved[list(place)] = rows
        rows = moved
    return stored, rows


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("tokens", [1, 3, 64, 65])
def test_a_product_is_the_unpacked_matrix_s(tmp_path: Path, random: Any, name: str, tokens: int) -> None:
    stored, rows = tensor(tmp_path, random.standard_normal((70, 96)), name)
    bias = torch.randn(70)
    x = torch.randn(2, tokens, 96)[:, :tokens]
    expected = x @ rows.t() + bias
    got = PackedLinear(stored, bias)(x)
    assert got.shape == expected.shape
    assert float((got - expected).norm() / expected.norm()) < 0.01


def test_rows_go_to_their_places(tmp_path: Path, random: Any) -> None:
    place = tuple(int(i) for i in random.permutation(64))
    stored, rows = tensor(tmp_path, random.standard_normal((64, 64)), place=place)
    linear = PackedLinear(stored, None)
    torch.testing.assert_close(linear.weight, rows)
    for tokens in (2, 70):
        x = torch.randn(tokens, 64)
        assert float((linear(x) - x @ rows.t()).norm() / (x @ rows.t()).norm()) < 0.01


def test_matrices_of_one_input_stand_side_by_side(tmp_path: Path, random: Any) -> None:
    parts = [
        tensor(tmp_path, random.standard_normal((n, 64)), kind) for n, kind in ((48, "Q8_0"), (16, "Q4_1"), (20, "F16"))
    ]
    product = Product([stored for stored, _ in parts], [None, torch.ones(16), None])
    for tokens in (1, 70):
        x = torch.randn(tokens, 64)
        expected = torch.cat([x @ parts[0][1].t(), x @ parts[1][1].t() + 1, x @ parts[2][1].t()], -1)
        assert float((product(x) - expected).norm() / expected.norm()) < 0.01


def test_kept_results_are_written_to_the_same_memory(tmp_path: Path, random: Any) -> None:
    product, other = (
        Product([tensor(tmp_path, random.standard_normal((48, 64)))[0]], [torch.ones(48)]) for _ in range(2)
    )
    kept, x, y = KeptResults(product, most=5 * 48 * 4), torch.randn(1, 3, 64), torch.randn(5, 64)
    expected = product(x), product(y), other(y)
    with kept:
        assert torch.equal(first := product(x), expected[0])
        assert torch.equal(other(y), expected[2])
        assert torch.equal(first, expected[0])
        second = product(y)
        assert torch.equal(second, expected[1])
        assert torch.equal(third := product(x), expected[0]) and third.data_ptr() == second.data_ptr()
        product(torch.randn(6, 64))  # more than is kept
        elsewhere: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: elsewhere.append(product(y)))
        thread.start()
        thread.join()
        assert torch.equal(third, expected[0]) and torch.equal(elsewhere[0], expected[1])
    assert product(x).data_ptr() != third.data_ptr()


def test_gradients_reach_the_input(tmp_path: Path, random: Any) -> None:
    stored, rows = tensor(tmp_path, random.standard_normal((40, 64)))
    x = torch.randn(3, 64, requires_grad=True)
    weights = torch.randn(3, 40)
    (PackedLinear(stored, None)(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ rows, rtol=1e-4, atol=1e-4)


def test_an_embedding_reads_rows(tmp_path: Path, random: Any) -> None:
    stored, rows = tensor(tmp_path, random.standard_normal((50, 32)), "Q4_0")
    embedding = PackedEmbedding(stored, torch.float32)
    ids = torch.tensor([[3, 49], [0, 3]])
    torch.testing.assert_close(embedding(ids), rows[ids])
    with pytest.raises(IndexError, match="vocabulary of 50"):
        embedding(torch.tensor([50]))


@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_experts_are_the_eager_ones(tmp_path: Path, random: Any, tokens: int) -> None:
    kinds = [tensor(tmp_path, random.standard_normal(shape) / 8) for shape in ((6, 32, 64), (6, 32, 64), (6, 64, 32))]
    (gate, g), (up, u), (down, d) = kinds
    experts = PackedExperts((gate, up), down, Gated(nn.SiLU()))
    x, weights = torch.randn(tokens, 64), torch.rand(tokens, 2)
    index = torch.stack([torch.randperm(6)[:2] for _ in range(tokens)])
    expected = torch.zeros(tokens, 64)
    for t in range(tokens):
        for weight, e in zip(weights[t], index[t], strict=True):
            expected[t] += weight * (d[e] @ (torch.nn.functional.silu(g[e] @ x[t]) * (u[e] @ x[t])))
    assert (
        float((experts(x, index, weights) - expected).norm() / expected.norm()) < 0.03
    )  # activations of 8 bits, three times


def test_the_embedded_model_stays_packed_and_says_the_same() -> None:
    packed, plain = load_model("embedded"), load_model("embedded", packed=False)
    assert packed.packed is not None and packed.packed.fused == 12 and not packed.packed.unpacked
    assert packed.weight_bytes <= 1.05 * embedded_model().stat().st_size
    assert "weights stay in the file's blocks" in packed.notes[0]
    assert plain.packed is None and "as asked for" in plain.notes[0]
    for ids in (IDS, torch.randint(0, 4096, (2, 40), generator=torch.Generator().manual_seed(0))):
        with torch.inference_mode():
            ours, theirs = (m.model(ids).logits for m in (packed, plain))
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_a_step_continues_a_prompt_that_was_longer() -> None:
    model: Any = load_model("embedded").model
    ids = torch.randint(0, 4096, (1, 90), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model(ids, past_key_values=KVCache(model.config, "f32")).logits[:, -1]
        cache = KVCache(model.config, "f32")
        model(ids[:, :-1], past_key_values=cache)
        step = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
    assert float((whole - step).norm() / whole.norm()) < 0.03


def test_a_cut_file_is_an_error_at_the_next_step_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copyfile(embedded_model(), path)
    model: Any = load_model(path).model
    with torch.inference_mode():
        model(IDS)
        os.truncate(path, 1_000_000)
        with pytest.raises(UserError, match="was cut or rewritten"):
            model(IDS)


def test_a_file_cut_during_a_step_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copyfile(embedded_model(), path)
    model: Any = load_model(path).model
    model.model.layers[2].register_forward_pre_hook(lambda *_: os.truncate(path, 200_000))
    with torch.inference_mode(), pytest.raises(UserError, match="was cut or rewritten"):
        model(IDS)


def test_two_models_and_several_threads() -> None:
    models = [load_model("embedded").model for _ in range(2)]
    with torch.inference_mode():
        expected = models[0](IDS).logits
    wrong: list[Any] = []

    def run(model: Any) -> None:
        with torch.inference_mode():
            for _ in range(5):
                if not torch.equal(model(IDS).logits, expected):
                    wrong.append(model)

    threads = [threading.Thread(target=run, args=(model,)) for model in (*models, *models)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_can_go_on() -> None:
    model: Any = load_model("embedded").model
    with torch.inference_mode():
        expected = model(IDS).logits
        child = os.fork()
        if child == 0:
            same = torch.equal(model(IDS).logits, expected)
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_exact_is_the_unpacked_model_in_float32() -> None:
    exact, plain = load_model("embedded", exact=True), load_model("embedded", packed=False)
    assert exact.packed is not None and exact.packed.fused == 0
    with torch.inference_mode():
        ours, theirs = (m.model(IDS).logits for m in (exact, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
