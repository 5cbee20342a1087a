"""What is right, written a second time: one plain FP64 SVD per block in a loop, sharing nothing with the package."""

from collections.abc import Sequence

import torch
from torch import Tensor


def row_lists(rows: int, blocks: int) -> list[list[int]]:
    """Rows of K consecutive blocks, the first ones a row longer where K does not divide."""
    return [part.tolist() for part in torch.arange(rows).tensor_split(blocks)]


def scores(weight: Tensor, grad: Tensor, blocks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """σ and uᵢᵀ G vᵢ of every block of one matrix, `[K, r]`, zeros beyond a block's own length."""
    columns = weight.shape[-1]
    longest = max(min(len(block), columns) for block in blocks)
    sigma = torch.zeros(len(blocks), longest, dtype=torch.float64)
    slope = torch.zeros_like(sigma)
    for j, block in enumerate(blocks):
        u, s, vh = torch.linalg.svd(weight[list(block)].double(), full_matrices=False)
        for i in range(len(s)):
            sigma[j, i] = s[i]
            slope[j, i] = u[:, i] @ grad[list(block)].double() @ vh[i]
    return sigma, slope


def reduction(weight: Tensor, ranks: Sequence[int], blocks: Sequence[Sequence[int]]) -> Tensor:
    """One matrix with every block truncated to its own rank, FP64."""
    out = torch.full(weight.shape, torch.nan, dtype=torch.float64)
    for block, rank in zip(blocks, ranks, strict=True):
        u, s, vh = torch.linalg.svd(weight[list(block)].double(), full_matrices=False)
        out[list(block)] = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
    return out


def residuals(weight: Tensor, ranks: Sequence[int], blocks: Sequence[Sequence[int]]) -> float:
    """Smallest Frobenius residual that truncation to these ranks allows (Eckart–Young)."""
    tails = [
        torch.linalg.svdvals(weight[list(block)].double())[rank:].square().sum()
        for block, rank in zip(blocks, ranks, strict=True)
    ]
    return float(torch.stack(tails).sum().sqrt())


def whitened(deltas: Tensor, inputs: Tensor, block: Sequence[int], damping: float) -> Tensor:
    """Δᵀ (ΔΔᵀ + λ)^-½ (XXᵀ + λ)^-½ X of one block, in the dtype given: the side of the tokens, by thin SVDs."""
    sides = []
    for rows in (deltas[:, list(block)], inputs):
        u, s, vh = torch.linalg.svd(rows, full_matrices=False)
        damped = s.square() + damping * s.square().sum() / rows.shape[1]
        sides.append((u, s / damped.sqrt() if s.any() else s, vh))
    (u, f, vh), (u_x, f_x, vh_x) = sides
    return (vh.mT * f) @ (u.mT @ u_x) @ (f_x.unsqueeze(-1) * vh_x)


def moment_root(moment: Tensor, damping: float) -> Tensor:
    """The symmetric (C + λ)^½, λ a share of the mean eigenvalue; of zeros the identity."""
    squares, vectors = torch.linalg.eigh(moment.double())
    damped = squares.clamp(min=0) + damping * squares.clamp(min=0).mean()
    return (vectors * (damped.sqrt() if damped.any() else torch.ones_like(damped))) @ vectors.mT


def whitened_reduction(
    weight: Tensor, moment: Tensor, damping: float, ranks: Sequence[int], blocks: Sequence[Sequence[int]]
) -> Tensor:
    """One matrix with every block the best of its rank in the norm ‖(A − A_k) (C + λ)^½‖, by way of the inverse."""
    root = moment_root(moment, damping)
    return reduction(weight.double() @ root, ranks, blocks) @ torch.linalg.inv(root)
