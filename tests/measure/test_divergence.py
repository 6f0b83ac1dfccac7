from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from stratakv.kernels.native import native
from stratakv.measure import divergence
from stratakv.measure.divergence import Floats, Predictions, negative_log_likelihood, predictions

COMPILED: Any = native()


@pytest.fixture(params=[*(COMPILED.scorers() if COMPILED else ()), "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test by the compiled passes that run here and by torch, which GPUs and other dtypes have."""
    if request.param == "torch":
        monkeypatch.setattr(divergence, "native", lambda: None)
    else:
        monkeypatch.setattr(divergence, "_SCORER", request.param)


def compared(reference: torch.Tensor, measured: torch.Tensor) -> tuple[Floats, list[bool]]:
    """KLD, and whether the most likely token is the same."""
    left = predictions(reference)
    right = predictions(measured, left)
    assert right.kld is not None
    return right.kld, (left.top == right.top).tolist()


def logits(seed: int, rows: int = 7, vocab: int = 300, scale: float = 5.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def slow(p_logits: torch.Tensor, q_logits: torch.Tensor) -> list[float]:
    """Term by term, in numpy's widest float."""
    result = []
    for left, right in zip(p_logits.numpy().astype(np.longdouble), q_logits.numpy().astype(np.longdouble), strict=True):
        log_p, log_q = log_softmax(left), log_softmax(right)
        result.append(float(sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))))
    return result


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 1.0])
def test_divergence_is_that_of_the_slow_version(noise: float) -> None:
    reference = logits(1)
    measured = reference + noise * logits(2)
    kld, _ = compared(reference, measured)
    np.testing.assert_allclose(kld, slow(reference, measured), rtol=1e-6, atol=1e-14)


def test_equal_logits_give_exactly_zero() -> None:
    reference = logits(3, rows=50)
    kld, agree = compared(reference, reference.clone())
    assert (kld == 0).all()
    assert all(agree)


def test_a_shift_of_all_logits_is_no_divergence() -> None:
    kld, _ = compared(logits(4).double(), logits(4).double() + 100)
    assert np.abs(kld).max() < 1e-12


def test_divergences_far_below_float32_noise_are_resolved() -> None:
    reference = logits(5, rows=200, vocab=4000).double()
    measured = reference + 1e-5 * logits(6, rows=200, vocab=4000).double()
    kld, _ = compared(reference, measured)
    assert kld.min() > 0
    assert kld.mean() < 1e-8


def test_many_rows_are_scored_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, targets = logits(7, rows=13), logits(8, rows=13), torch.arange(13)
    whole = compared(left, right), negative_log_likelihood(predictions(left), targets)
    monkeypatch.setattr(divergence, "_VALUES_AT_ONCE", 600)
    parts = compared(left, right), negative_log_likelihood(predictions(left), targets)
    np.testing.assert_array_equal(whole[0][0], parts[0][0])
    assert whole[0][1] == parts[0][1]
    np.testing.assert_array_equal(whole[1], parts[1])


def test_top_1_agreement() -> None:
    left = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    right = torch.tensor([[0.0, 1.0, 1.5], [1.0, 3.0, 2.0]])
    assert compared(left, right)[1] == [True, False]


def test_tokens_that_both_exclude_don_t_count() -> None:
    left, right = logits(9), logits(10)
    left[:, 5] = right[:, 5] = float("-inf")
    kept = [i for i in range(300) if i != 5]
    whole, fewer = compared(left, right), compared(left[:, kept].contiguous(), right[:, kept].contiguous())
    np.testing.assert_allclose(whole[0], fewer[0], rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_raise(bad: float) -> None:
    left, right = logits(11), logits(12)
    right[2, 3] = bad
    with pytest.raises(FloatingPointError, match="not finite in 1 of 7"):
        predictions(right, predictions(left))
    with pytest.raises(FloatingPointError, match="not finite in 1 of 7"):
        predictions(right)


def test_a_token_that_only_the_measured_one_excludes_raises() -> None:
    left, right = logits(13), logits(14)
    right[0, 0] = float("-inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        predictions(right, predictions(left))


def test_a_target_that_is_excluded_raises() -> None:
    scores = logits(16)
    scores[3, 5] = float("-inf")
    with pytest.raises(FloatingPointError, match="not finite in 1 of 7"):
        negative_log_likelihood(predictions(scores), torch.full((7,), 5))


def test_likelihood_is_cross_entropy() -> None:
    scores, targets = logits(15), torch.arange(7)
    expected = torch.nn.functional.cross_entropy(scores.double(), targets, reduction="none").numpy()
    np.testing.assert_allclose(negative_log_likelihood(predictions(scores), targets), expected, rtol=1e-12)


@pytest.mark.parametrize("vocab", [1, 7, 16, 17, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_width_and_dtype(vocab: int, dtype: torch.dtype) -> None:
    reference = logits(17, rows=5, vocab=vocab).to(dtype)
    measured = (reference + 0.3 * logits(18, rows=5, vocab=vocab)).to(dtype)
    kld, agree = compared(reference, measured)
    np.testing.assert_allclose(kld, slow(reference.float(), measured.float()), rtol=1e-9, atol=1e-14)
    assert agree == (reference.argmax(-1) == measured.argmax(-1)).tolist()
    np.testing.assert_allclose(predictions(measured).logsumexp, measured.double().logsumexp(-1), rtol=1e-14)


def test_the_first_of_equal_ones_is_the_most_likely() -> None:
    scores = torch.zeros(2, 3000)
    scores[1, [1500, 2900]] = 1.0
    assert predictions(scores).top.tolist() == [0, 1500]


def test_unlikely_tokens_beyond_float64_s_range_don_t_count() -> None:
    left, right = torch.zeros(1, 40), torch.zeros(1, 40)
    left[0, 1:], right[0, 1:] = -800.0, -760.0
    assert compared(left, right)[0].tolist() == [0.0]


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_don_t_depend_on_company(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        reference, measured = logits(19, rows=33, vocab=2000), logits(20, rows=33, vocab=2000)
        whole = predictions(measured, predictions(reference))
        assert whole.kld is not None
        for row in range(33):
            alone: Predictions = predictions(measured[row : row + 1], predictions(reference[row : row + 1]))
            assert alone.kld is not None
            assert alone.kld[0] == whole.kld[row] and alone.logsumexp[0] == whole.logsumexp[row]
    finally:
        torch.set_num_threads(before)
