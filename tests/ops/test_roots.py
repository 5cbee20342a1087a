"""Inverse square roots by products alone."""

import pytest
import torch
from spectra import gaussian, with_spectrum

from lasertri.ops import products, roots
from lasertri.ops.roots import inverse_root, resolved

SIZE = 700  # of the side that the Gram matrix is not of


def exact(gram, damping):
    damped = gram.double() + damping / SIZE * gram.double().trace() * torch.eye(len(gram), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(damped)
    return vectors * values.rsqrt() @ vectors.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("damping", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("decay", [0.0, 1.0, 12.0], ids=["flat", "falling", "steep"])
def test_any_spectrum_is_inverted_to_the_digits_that_its_condition_leaves(dtype, damping, decay):
    matrix = with_spectrum(torch.logspace(0, -decay, 97), 97, 97)
    gram = (matrix @ matrix.mT).to(dtype)
    expected = exact(gram, damping)
    found = inverse_root(gram, damping, SIZE).double()
    condition, rounding = 1 + SIZE / damping, torch.finfo(dtype).eps
    assert float((found - expected).norm() / expected.norm()) < (10 + condition) * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("band", [40, 1024])
def test_rows_of_few_directions_keep_their_digits(dtype, rank, band, monkeypatch):
    """Beside many damped ones, whose inverse roots are the largest."""
    monkeypatch.setattr(products, "BAND", band)
    rows = gaussian(97, rank) @ gaussian(rank, SIZE, seed=1)
    gram = rows @ rows.mT
    expected = exact(gram, 0.1) @ rows
    found = inverse_root(gram.to(dtype), 0.1, SIZE).double() @ rows
    condition, rounding = 1 + SIZE / 0.1, torch.finfo(dtype).eps
    assert float((found - expected).norm() / expected.norm()) < condition * rounding


def test_digits_that_are_not_asked_for_take_no_products(monkeypatch):
    products_made = []
    multiply = roots.symmetric_product
    monkeypatch.setattr(roots, "symmetric_product", lambda *sides: products_made.append(1) or multiply(*sides))
    matrix = with_spectrum(torch.logspace(0, -1, 97), 97, 97)
    gram = matrix @ matrix.mT
    found = [inverse_root(gram, 0.1, SIZE, dtype) for dtype in (None, torch.float32)]
    assert len(products_made) == 2 * (8 + 7), "of the root and of the inverse, after the first step"
    expected = exact(gram, 0.1)
    errors = [float((each - expected).norm() / expected.norm()) for each in found]
    assert errors[0] < 1e-12 < errors[1] < 1e-6


def test_only_the_lower_triangle_counts_and_every_matrix_of_a_stack_has_its_own():
    stack = torch.stack([with_spectrum(torch.logspace(0, -i, 11), 11, 11, seed=i) for i in range(3)])
    grams = stack @ stack.mT
    for found, gram in zip(inverse_root(grams.tril(), 0.1, SIZE), grams, strict=True):
        torch.testing.assert_close(found, exact(gram, 0.1), rtol=1e-9, atol=1e-9)


def test_of_zeros_it_is_finite():
    assert inverse_root(torch.zeros(2, 5, 5), 0.1, SIZE).isfinite().all()


def test_what_is_hardly_damped_is_not_resolved():
    assert resolved(0.1, 16384, torch.float32)
    assert not resolved(0.01, 16384, torch.float32)
    assert resolved(1e-9, 16384, torch.float64)
    assert not resolved(0.0, 1, torch.float64)
