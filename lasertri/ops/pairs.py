"""Blocks of rows as pairs of thin factors, `[b, k]` and `[k, n]`: made of a truncation, balanced, multiplied out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lasertri.ops.blocks import BlockFactors

PANEL = 1024  # rows or columns multiplied at once in FP64


def truncated_factors(weight: Tensor, factors: BlockFactors, ranks: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The two factors of every truncated block, in FP64.

    Args:
        weight: `[m, n]`, whose factors these are.
        factors: what `block_svd` returned for it.
        ranks: retained rank of every block; a block with fewer singular values is kept whole.

    Returns:
        Of every block in turn `[b, k]` and `[k, n]`; the one on the block's short side is orthonormal.
    """
    offsets, order = factors.partition.offsets, factors.partition.order
    for j, (rank, length) in enumerate(zip(ranks, factors.lengths, strict=True)):
        rows = slice(offsets[j], offsets[j + 1])
        block = weight[rows if order is None else order[rows].to(weight.device)]
        basis = factors.basis[j, :, : min(rank, length)].double()
        if factors.side == "left":
            basis = torch.linalg.qr(basis[: block.shape[0]]).Q  # orthonormal in FP64 again
            yield basis, torch.cat([basis.mT @ panel.double() for panel in block.split(PANEL, dim=1)], dim=1)
        else:
            basis = torch.linalg.qr(basis).Q
            yield torch.cat([panel.double() @ basis for panel in block.split(PANEL)]), basis.mT


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, FP64, with √σ on both sides: neither over- nor underflows in FP16, and both round alike.

    Args:
        left, right: `[b, k]` and `[k, n]`; the columns of the one and the rows of the other are orthogonal.
    """
    left, right = left.double(), right.double()
    scale = (right.norm(dim=1) / left.norm(dim=0)).sqrt()
    scale = scale.where(scale.isfinite() & (scale > 0), 1)  # σ = 0
    return left * scale, right / scale[:, None]


def singular(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of a product, in FP64, without forming it: `[b, k]`, `[k]` and `[k, n]`.

    Args:
        left, right: `[b, k]` and `[k, n]`, of which k is the smallest.
    """
    rows, one = torch.linalg.qr(left.double())
    columns, other = torch.linalg.qr(right.double().mT)
    u, sigma, vh = torch.linalg.svd(one @ other.mT, full_matrices=False)
    return rows @ u, sigma, vh @ columns.mT


def pivoted(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product as k of its own rows, and what makes its other rows of these: k² numbers fewer.

    The rows are the pivots of an LU factorisation of an orthonormal basis of the columns, so that what makes the others
    of them has no large values.

    Args:
        left, right: `[b, k]` and `[k, n]`.

    Returns:
        In FP64 the others of these `[b − k, k]` and the k rows `[k, n]`; and which rows they are, those k first `[b]`.
    """
    basis, rest = torch.linalg.qr(left.double())
    count, rank = basis.shape
    rows = list(range(count))
    factors, swaps = torch.linalg.lu_factor(basis)
    for i, other in enumerate(swaps.tolist()):  # LAPACK's, from 1, one after the other
        rows[i], rows[other - 1] = rows[other - 1], rows[i]
    order = torch.tensor(rows, dtype=torch.int64, device=left.device)
    lower = factors.tril(-1)
    others = torch.linalg.solve_triangular(lower[:rank], lower[rank:], upper=False, left=False, unitriangular=True)
    return others, basis[order[:rank]] @ (rest @ right.double()), order


def multiplied(pairs: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype, order: Tensor | None = None) -> Tensor:
    """The matrix `[m, n]` that pairs of factors stand for, multiplied in FP64 and rounded once.

    Args:
        pairs: `[b, k]` and `[k, n]` of every block.
        dtype: of the result.
        order: rows of the result in the order of the blocks' rows; None for consecutive blocks.
    """
    panels = [(panel.double() @ right.double()).to(dtype) for left, right in pairs for panel in left.split(PANEL)]
    matrix = torch.cat(panels)
    return matrix if order is None else torch.empty_like(matrix).index_copy_(0, order, matrix)
