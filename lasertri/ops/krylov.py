"""A few leading singular vectors of a large matrix, at a few passes over it: block Krylov iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from lasertri.ops.products import panels

MARGIN = 8  # columns of a block beyond the rank
ROOM = 10  # times the block: with a shorter side the eigenproblem of all of it is as fast
SHORTEST = 512  # side; below, the same
SETTLED = 1e-7  # of the squares that are left: an iteration that captures no more of them is the last


def leading_vectors(short: Tensor, rank: int, dtype: torch.dtype) -> Tensor | None:
    """Left singular vectors for the `rank` largest singular values, or None where the side's eigenproblem is better.

    From a random block Ω the vectors are sought in the span of A Aᵀ Ω, (A Aᵀ)² Ω, … (Musco and Musco, 2015), which
    grows until what it captures does not: the squared residual is then within about 1e-7 of the least there is.

    Args:
        short: `[B, s, l]`, the short side first, any floating dtype.
        rank: how many, of every block.
        dtype: of the products with A, which are made panel by panel.

    Returns:
        An orthonormal basis `[B, s, rank]` in FP64, or None: too many are asked for, or the spectrum is so flat that
        the basis grew to half of the side.
    """
    size, width = short.shape[-2], rank + MARGIN
    if rank == 0 or size < max(SHORTEST, ROOM * width) or not short.numel():
        return None
    start = torch.randn(size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = torch.linalg.qr(_passed(short, start.to(short.device).expand(len(short), -1, -1), dtype)).Q
    basis, images = block, block[..., :0]
    squares, captured = block.new_zeros(len(short)), block.new_zeros(len(short))
    for columns in panels(short):
        squares += short[..., columns].to(dtype).square().sum((-2, -1))
    while basis.shape[-1] <= size // 2:
        image = _passed(short, block, dtype)
        images = torch.cat([images, image], dim=-1)
        projected = basis.mT @ images
        values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
        before, captured = captured, values[..., -rank:].sum(-1)
        left = (squares - captured).clamp(min=torch.finfo(dtype).eps * squares)
        if (captured - before <= SETTLED * left).all():
            return basis @ vectors[..., -rank:].flip(-1)
        block = image
        for _ in range(2):  # once leaves what cancellation left
            block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
        basis = torch.cat([basis, block], dim=-1)
    return None


def _passed(short: Tensor, block: Tensor, dtype: torch.dtype) -> Tensor:
    """A Aᵀ times a block `[B, s, k]`, summed in FP64."""
    narrow, out = block.to(dtype), torch.zeros_like(block)
    for columns in panels(short):
        panel = short[..., columns].to(dtype)
        out += panel @ (narrow.mT @ panel).mT
    return out
