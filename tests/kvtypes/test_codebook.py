from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate

from stratakv.kvtypes.codebook import _lloyd_max, codebook

# formats.md's positive halves
LLOYD_MAX = {
    (128, 2): [0.039992, 0.133042],
    (128, 3): [0.021604, 0.066586, 0.118140, 0.188397],
    (128, 4): [0.011302, 0.034152, 0.057772, 0.082828, 0.110288, 0.141805, 0.180836, 0.237664],
    (64, 2): [0.056515, 0.187497],
    (64, 4): [0.015919, 0.048090, 0.081312, 0.116487, 0.154926, 0.198856, 0.252914, 0.330796],
}
LIMIT = {2: 1.01, 3: 1.01, 4: 1.01, 5: 1.03, 6: 1.10}


def integrated_distortion(block: int, entries: np.ndarray) -> float:
    """Relative squared error by numerical integration of the density."""
    x = np.linspace(-1, 1, 400_001)
    density = np.clip(1 - x * x, 0, None) ** ((block - 3) / 2)
    nearest = entries[np.searchsorted((entries[1:] + entries[:-1]) / 2, x)]
    return float(integrate.simpson((x - nearest) ** 2 * density, x=x) / integrate.simpson(x * x * density, x=x))


@pytest.mark.parametrize(("block", "bits"), LLOYD_MAX)
def test_lloyd_max_entries(block: int, bits: int):
    assert np.allclose(_lloyd_max(block, bits), LLOYD_MAX[block, bits], atol=6e-7)


@pytest.mark.parametrize("block", [8, 64, 112, 128, 448])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_integers_cost_next_to_nothing(block: int, bits: int):
    book = codebook(block, bits)
    half = _lloyd_max(block, bits)
    best = integrated_distortion(block, np.concatenate([-half[::-1], half]))
    assert book.distortion == pytest.approx(integrated_distortion(block, book.entries), rel=1e-3)
    assert best * 0.999 < book.distortion < best * LIMIT[bits]


@pytest.mark.parametrize("block", [8, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_form(block: int, bits: int):
    book = codebook(block, bits)
    integers = book.integers.astype(int)
    assert book.integers.dtype == np.int8
    assert len(integers) == 2**bits
    assert (np.diff(integers) > 0).all()
    assert codebook(block, bits) is book
    assert not book.integers.flags.writeable
    if bits == 8:
        assert integers.tolist() == list(range(-128, 128))
    else:
        assert np.array_equal(integers, -integers[::-1])
        assert abs(integers).max() <= 127
        ratio = 100 / (book.scale * block**0.5)
        assert ratio == pytest.approx(round(ratio), abs=1e-9)
    assert np.allclose(book.thresholds, (book.entries[1:] + book.entries[:-1]) / 2, rtol=1e-12)


def test_frozen_integers():
    """Stored bytes depend on these: a change of one is a new version of the type."""
    assert codebook(128, 2).integers[2:].tolist() == [37, 123]
    assert codebook(128, 3).integers[4:].tolist() == [13, 40, 71, 113]
    assert codebook(128, 4).integers[8:].tolist() == [5, 15, 25, 36, 48, 62, 79, 104]
    assert codebook(64, 4).integers[8:].tolist() == [6, 18, 30, 43, 57, 73, 93, 122]
    assert [round(1 / codebook(128, bits).scale / 128**0.5, 6) for bits in (2, 3, 4, 5, 6)] == [
        81.72,
        53.04,
        38.63,
        29.81,
        28.72,
    ]
    high = [33, 35, 38, 41, 44, 47, 50, 53, 57, 61, 65, 70, 75, 82, 91, 104]
    assert codebook(128, 6).integers[32:].tolist() == [*range(1, 32, 2), *high]
    assert codebook(128, 8).scale * 128**0.5 == pytest.approx(0.0299, abs=1e-12)


def test_uniform_step_is_the_best():
    book = codebook(128, 8)
    errors = [integrated_distortion(128, book.integers * (book.scale * factor)) for factor in (0.97, 1.0, 1.03)]
    assert errors[1] == min(errors)
