"""A few leading singular vectors of a large matrix, at a few passes over it: block Krylov iteration."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lasertri.ops.products import panels

MARGIN = 8  # columns of a block beyond the rank
ROOM = 10  # times the block: with a shorter side the eigenproblem of all of it is as fast
SHORTEST = 512  # side; below, the same
SETTLED = 1e-7  # of the squares that are left: a pass that captures no more of them is the last
ROUNDING = 1e-14  # of all squares: no more than this is neither captured nor left
LOOKS = {"cuda": 3}  # passes between looks at what is captured, 1 elsewhere: a GPU solves slowly and passes fast
NEW = 0.5  # of a unit column, beyond the basis: one with less is rounding


def leading_vectors(short: Tensor, rank: int, dtype: torch.dtype) -> Tensor | None:
    """Left singular vectors for the `rank` largest singular values, or None where the side's eigenproblem is better.

    Args:
        short: `[…, s, l]`, the short side first, any floating dtype.
        rank: how many, of every block.
        dtype: of the products with A, which are made panel by panel.

    Returns:
        See `leading_vectors_by`.
    """
    if not few(rank, short.shape[-2]) or not short.numel():
        return None
    squares = torch.zeros(short.shape[:-2], dtype=torch.float64, device=short.device)
    for columns in panels(short):
        squares += short[..., columns].to(dtype).square().sum((-2, -1))
    pass_over = functools.partial(_passed, short, dtype=dtype)
    size = short.shape[-2]
    return leading_vectors_by(pass_over, squares, size, rank, most=size // 2)


def few(rank: int, size: int, room: int = ROOM) -> bool:
    """Whether so many vectors of so short a side are found faster than all: it has room for so many blocks."""
    return rank > 0 and size >= max(SHORTEST, room * (rank + MARGIN))


def leading_vectors_by(
    pass_over: Callable[[Tensor], Tensor], squares: Tensor, size: int, rank: int, *, most: int
) -> Tensor | None:
    """The same of a matrix A `[…, s, l]` that may be known by its products alone.

    From a random block Ω the vectors are sought in the span of A Aᵀ Ω, (A Aᵀ)² Ω, … (Musco and Musco, 2015), which
    grows until what it captures does not: the squared residual is then within about 1e-7 of the least there is.

    Args:
        pass_over: A Aᵀ times a block `[…, s, k]` in FP64.
        squares: the sum of the squares of A, `[…]` in FP64.
        size: s.
        most: vectors that the basis may grow to.

    Returns:
        An orthonormal basis `[…, s, rank]` in FP64, with zeros for some vectors whose singular value is 0; or None: the
        spectrum is so flat that the basis grew beyond that.
    """
    start = torch.randn(size, rank + MARGIN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = pass_over(start.to(squares.device).expand(*squares.shape, -1, -1))
    block = torch.linalg.qr(block).Q  # which loses nothing where the block holds all there is
    basis, images, captured = block, block[..., :0], torch.zeros_like(squares)
    last, looked, every = most // block.shape[-1], 0, LOOKS.get(squares.device.type, 1)
    for number in range(1, last + 1):
        image = pass_over(block)
        images = torch.cat([images, image], dim=-1)
        if number % every == 0 or number >= last - 1:
            projected = basis.mT @ images
            values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
            before, captured = captured, values[..., -rank:].sum(-1)
            least = torch.maximum(SETTLED * (squares - captured), ROUNDING * squares)
            if (captured - before <= (number - looked) * least).all():
                return basis @ vectors[..., -rank:].flip(-1)
            looked = number
        block = _beyond(basis, image)
        basis = torch.cat([basis, block], dim=-1)
    return None


def _beyond(basis: Tensor, block: Tensor) -> Tensor:
    """Orthonormal columns for what a block `[…, s, k]` adds to a basis, with zeros for those that add nothing.

    By Cholesky QR, shifted by what rounding may take of the least eigenvalue (Fukaya et al., 2020): a direction of the
    block that is shorter than the root of the shift is lost. Twice: of nothing, or of what cancellation left, the first
    makes columns that may be the basis's own, which the second tells by how little it leaves of them.
    """
    for _ in range(2):
        block = block - basis @ (basis.mT @ block)
        gram = block.mT @ block
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        shift = torch.finfo(block.dtype).eps * block.shape[-2] * trace
        gram.diagonal(dim1=-2, dim2=-1).add_(torch.where(trace > 0, shift, 1).unsqueeze(-1))
        root, _ = torch.linalg.cholesky_ex(gram)
        block = torch.linalg.solve_triangular(root.mT, block, upper=True, left=False)
    new = root.diagonal(dim1=-2, dim2=-1) > NEW
    norms = block.norm(dim=-2).clamp(min=NEW)  # 1 but for the shift, or 0
    return block * (new / norms).unsqueeze(-2)


def _passed(short: Tensor, block: Tensor, *, dtype: torch.dtype) -> Tensor:
    """A Aᵀ times a block `[…, s, k]`, summed in FP64."""
    narrow, out = block.to(dtype), torch.zeros_like(block)
    for columns in panels(short):
        panel = short[..., columns].to(dtype)
        out += panel @ (narrow.mT @ panel).mT
    return out
