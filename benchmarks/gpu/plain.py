"""The ops as plain torch does them: (a) by an FP32 SVD, (b) by an FP64 eigenproblem of the Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor, Tensor]  # left vectors, singular values, right vectors transposed, of every block


def split(matrix: Tensor, blocks: int) -> Tensor:
    """`[m, n]` -> `[K, b, n]`."""
    return matrix.unflatten(0, (blocks, -1))


def factor_by_svd(blocks: Tensor) -> Factors:
    return tuple(torch.linalg.svd(blocks.float(), full_matrices=False))


def factor_by_eigh(blocks: Tensor) -> Factors:
    """The short side's vectors from the Gram matrix, the other side's from them; all at once, nothing in panels."""
    wide = blocks.shape[-2] <= blocks.shape[-1]
    a = blocks.double() if wide else blocks.double().mT
    basis = torch.linalg.eigh(a @ a.mT).eigenvectors.flip(-1)
    coordinates = basis.mT @ a
    sigma = coordinates.norm(dim=-1)
    other = coordinates / sigma.unsqueeze(-1)
    return (basis, sigma, other) if wide else (other.mT, sigma, basis.mT)


def slopes(factors: Factors, grads: Tensor) -> Tensor:
    """∂L/∂σᵢ = uᵢᵀ G vᵢ of every block."""
    u, _, vh = factors
    return torch.einsum("kbr,kbn,krn->kr", u, grads.to(u.dtype), vh)


def truncations(factors: Factors, ranks: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One product for every rank."""
    u, sigma, vh = factors
    return torch.stack([((u[..., :k] * sigma[:, None, :k]) @ vh[:, :k]).to(dtype) for k in ranks])


def incremental_truncations(factors: Factors, ranks: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The same as one running sum, as eager torch does it best."""
    u, sigma, vh = factors
    return incremental_products(u * sigma.unsqueeze(-2), vh, ranks, dtype)


def incremental_products(
    left: Tensor, right: Tensor, ranks: Sequence[int], dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """`left[..., :k] @ right[..., :k, :] + bias` for every rank, each adding its part to the one below."""
    stack, total, done = {}, 0.0 if bias is None else bias.to(left.dtype).unsqueeze(-2), 0
    for k in sorted(set(ranks)):
        total = total + left[..., done:k] @ right[..., done:k, :]
        stack[k], done = total.to(dtype), k
    return torch.stack([stack[k] for k in ranks])
