from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from stratakv.measure.divergence import divergence, negative_log_likelihood


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
    kld, _ = divergence(reference, measured)
    np.testing.assert_allclose(kld, slow(reference, measured), rtol=1e-6, atol=1e-14)


def test_equal_logits_give_exactly_zero() -> None:
    reference = logits(3, rows=50)
    kld, agree = divergence(reference, reference.clone())
    assert (kld == 0).all()
    assert agree.all()


def test_a_shift_of_all_logits_is_no_divergence() -> None:
    kld, _ = divergence(logits(4).double(), logits(4).double() + 100)
    assert np.abs(kld).max() < 1e-12


def test_divergences_far_below_float32_noise_are_resolved() -> None:
    reference = logits(5, rows=200, vocab=4000).double()
    measured = reference + 1e-5 * logits(6, rows=200, vocab=4000).double()
    kld, _ = divergence(reference, measured)
    assert kld.min() > 0
    assert kld.mean() < 1e-8


def test_many_rows_are_scored_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, targets = logits(7, rows=13), logits(8, rows=13), torch.arange(13)
    whole = divergence(left, right), negative_log_likelihood(left, targets)
    monkeypatch.setattr("stratakv.measure.divergence._VALUES_AT_ONCE", 600)
    parts = divergence(left, right), negative_log_likelihood(left, targets)
    np.testing.assert_array_equal(whole[0].kld, parts[0].kld)
    np.testing.assert_array_equal(whole[0].agree, parts[0].agree)
    np.testing.assert_array_equal(whole[1], parts[1])


def test_top_1_agreement() -> None:
    left = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    right = torch.tensor([[0.0, 1.0, 1.5], [1.0, 3.0, 2.0]])
    assert divergence(left, right).agree.tolist() == [True, False]


def test_tokens_that_both_exclude_don_t_count() -> None:
    left, right = logits(9), logits(10)
    left[:, 5] = right[:, 5] = float("-inf")
    kept = [i for i in range(300) if i != 5]
    np.testing.assert_allclose(divergence(left, right).kld, divergence(left[:, kept], right[:, kept]).kld, rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_raise(bad: float) -> None:
    left, right = logits(11), logits(12)
    right[2, 3] = bad
    with pytest.raises(FloatingPointError, match="not finite in 1 of 7"):
        divergence(left, right)
    with pytest.raises(FloatingPointError, match="not finite in 1 of 7"):
        negative_log_likelihood(right, torch.zeros(7, dtype=torch.int64))


def test_a_token_that_only_the_measured_one_excludes_raises() -> None:
    left, right = logits(13), logits(14)
    right[0, 0] = float("-inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        divergence(left, right)


def test_likelihood_is_cross_entropy() -> None:
    scores, targets = logits(15), torch.arange(7)
    expected = torch.nn.functional.cross_entropy(scores.double(), targets, reduction="none").numpy()
    np.testing.assert_allclose(negative_log_likelihood(scores, targets), expected, rtol=1e-12)
