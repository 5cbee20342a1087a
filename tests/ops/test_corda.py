"""CorDA's factors are those of its definition, also where a Gram matrix would have lost them."""

import pytest
import torch
from spectra import gaussian, with_spectrum

from lasertri.ops.corda import DAMPING, RESOLVED, corda_factors


def anisotropic(size, decades):
    """A second moment whose eigenvalues spread over so many decades."""
    inputs = gaussian(2 * size, size, seed=1) * torch.logspace(0, -decades / 2, size, dtype=torch.float64)
    return inputs.mT @ inputs


def steep(rows, columns, decades):
    """A matrix whose singular values do."""
    return with_spectrum(torch.logspace(0, -decades, min(rows, columns), dtype=torch.float64), rows, columns)


def defined(weight, moment, rank, leading):
    """U, S and U S Vᵀ (C + λ)⁻¹ by a full SVD and an inverse."""
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    u, sigma, vh = torch.linalg.svd(weight.double() @ damped, full_matrices=False)
    part = slice(rank) if leading else slice(len(sigma) - rank, None)
    return u[:, part], sigma[part], (u[:, part] * sigma[part]) @ vh[part] @ torch.linalg.inv(damped)


CASES = {
    "wide": (gaussian(24, 40), 3),
    "tall": (gaussian(40, 24), 3),
    "square, condition 1e7": (steep(32, 32, 7), 3),
    "square, all of it": (gaussian(16, 16), 16),
    "by iteration": (gaussian(520, 540), 4),
    "resolved by an SVD alone": (steep(24, 30, 7), 23),
    "BF16": (gaussian(24, 40, dtype=torch.bfloat16), 3),
}


@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_the_definition(case, leading):
    weight, rank = CASES[case]
    moment = anisotropic(weight.shape[1], 4)
    u, sigma, product = defined(weight, moment, rank, leading)
    left, right = corda_factors(weight, moment, rank, leading=leading)
    assert (left.dtype, left.shape, right.shape) == (torch.float64, u.shape, (rank, weight.shape[1]))
    torch.testing.assert_close(left.square().sum(0), sigma, rtol=1e-5, atol=1e-12 * float(sigma[0]))
    torch.testing.assert_close(left @ right, product, rtol=0, atol=1e-4 * float(product.abs().max()))


def test_the_steep_case_is_beyond_what_a_gram_matrix_resolves():
    weight, rank = CASES["resolved by an SVD alone"]
    _, sigma, _ = defined(weight, anisotropic(30, 4), rank, leading=True)
    assert sigma[-1] < RESOLVED * sigma[0]


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (12, 12)])
@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize("kept", [0, 5])
def test_of_a_matrix_of_low_rank_they_are_finite(shape, leading, kept):
    weight = gaussian(shape[0], kept) @ gaussian(kept, shape[1])
    left, right = corda_factors(weight, anisotropic(shape[1], 2), 12, leading=leading)
    torch.testing.assert_close(left @ right, weight, rtol=0, atol=1e-10)
    left, right = corda_factors(weight, anisotropic(shape[1], 2), 3, leading=leading)
    assert left.isfinite().all()
    assert int((torch.linalg.svdvals(left @ right) > 1e-10).sum()) == min(kept, 3) * leading
