"""CorDA's factors of a weight (arXiv 2406.05223): those of its components that say most, or least, on some inputs.

With W (C + λ) = U S Vᵀ they are U_k S_k V_kᵀ (C + λ)⁻¹ = U_k U_kᵀ W, for which only U and S are needed and C is not
inverted. The trailing ones are the leading ones of the pseudoinverse's transpose, U S⁻¹ Vᵀ: the condition of W (C + λ)
is often beyond 1e8, and of its Gram matrix they would be rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lasertri.ops.converging import solvers_named
from lasertri.ops.functional import lowrank_blocks
from lasertri.ops.reference import svd_by_qr

DAMPING = 0.01  # λ as a share of C's mean eigenvalue
RESOLVED = 1e-5  # of the largest singular value: an FP64 Gram matrix knows vectors of such a one to about 1e-6
SINGULAR = 1e14  # a condition number beyond which an inverse is rounding

Components = tuple[Tensor, Tensor]  # U `[m, k]` and σ `[k]`, descending


@torch.no_grad()
@solvers_named()
def corda_factors(weight: Tensor, moment: Tensor, rank: int, *, leading: bool) -> tuple[Tensor, Tensor]:
    """W `[m, n]` and C `[n, n]`, FP64 -> U √S `[m, k]` and S^-½ Uᵀ W `[k, n]`, FP64.

    Args:
        rank: k, at most min(m, n).
        leading: whether of the largest singular values of W (C + λ), or of the smallest.

    Raises:
        NotConvergedError: no solver converges.
    """
    wide, damped = weight.double(), moment.clone()
    damped.diagonal().add_(DAMPING * moment.diagonal().mean())
    product = wide @ damped
    found = _leading(product, rank) if leading else _trailing(product, rank)
    if found is None:
        u, sigma, _ = svd_by_qr(product)
        own = slice(rank) if leading else slice(len(sigma) - rank, None)
        found = u[:, own], sigma[own]
    u, sigma = found
    root = sigma.sqrt()
    return u * root, (u.mT @ wide) * torch.where(root > 0, 1 / root, 0).unsqueeze(-1)


def _leading(matrix: Tensor, rank: int) -> Components | None:
    """None where they are not resolved."""
    left, _, [sigma] = lowrank_blocks(matrix, rank=rank)
    return (left / sigma.sqrt(), sigma) if sigma[-1] > RESOLVED * sigma[0] else None


def _trailing(matrix: Tensor, rank: int) -> Components | None:
    """The same for the smallest."""
    tall = matrix.shape[0] > matrix.shape[1]
    q, r = torch.linalg.qr(matrix, "reduced") if tall else torch.linalg.qr(matrix.mT, "r")
    inverse = torch.linalg.solve_triangular(r, torch.eye(len(r), dtype=r.dtype, device=r.device), upper=True)
    if not r.abs().max() * inverse.abs().max() < SINGULAR:
        return None
    found = _leading(inverse.mT if tall else inverse, rank)
    if found is None:
        return None
    u, sigma = found[0].flip(-1), found[1].flip(-1)
    return (q @ u if tall else u), 1 / sigma
