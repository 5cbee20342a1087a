"""Inverse square roots of damped Gram matrices by products alone, where a device multiplies faster than it solves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lasertri.ops.products import mirrored, symmetric_product

DIGITS = 0.1  # largest condition times eps at which the iteration is as good as an eigensolver


def resolved(damping: float, size: int, dtype: torch.dtype) -> bool:
    """Whether a Gram matrix damped by so much of its mean is conditioned well enough for `inverse_root`."""
    return size * torch.finfo(dtype).eps <= DIGITS * damping


def inverse_root(gram: Tensor, damping: float, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """(A Aᵀ + λ)^-½ `[…, p, p]` for λ = damping · tr(A Aᵀ) / size.

    The coupled Newton-Schulz iteration (Higham, *Functions of Matrices*, 2008, 6.35): the eigenvalues are scaled to at
    most 1, and their roots x taken to 1 by x → ½ ρ x (3 − ρ² x²). With ρ² = 3 / (1 + l + l²) for the least root l this
    lifts l furthest (Chen and Chow, 2014). The damping bounds l, so that the number of products depends on no value:
    three for each of 10 iterations in FP32, say, where size / damping is 1.6 · 10⁵.

    Args:
        gram: A Aᵀ `[…, p, p]`, of which the lower triangle counts; of zeros the result is finite.
        size: number of A's rows or columns, whichever the mean is over.
        dtype: whose digits the roots are to reach, by default that of A Aᵀ.
    """
    root = mirrored(gram)
    trace = root.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    largest = torch.where(trace > 0, trace * (1 + damping / size), 1)
    root /= largest
    root.diagonal(dim1=-2, dim2=-1).add_((damping / size * trace / largest).squeeze(-1))
    factor = inverse = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    until = 1 - 8 * torch.finfo(dtype or root.dtype).eps
    for step, square in enumerate(scales((1 + size / damping) ** -0.5, until)):
        if step:
            root = symmetric_product(root, factor)
        product = inverse @ root if step else root  # made symmetric, it would let errors grow
        factor = product * (-square * math.sqrt(square) / 2)
        factor.diagonal(dim1=-2, dim2=-1).add_(3 * math.sqrt(square) / 2)
        inverse = symmetric_product(factor, inverse) if step else factor
    return inverse / largest.sqrt()


def scales(least: float, until: float) -> Iterator[float]:
    """ρ² of every Newton-Schulz step x → ½ ρ x (3 − ρ² x²), until all that was in [l, 1] is in [until, 1]."""
    while least < until:
        square = 3 / (1 + least + least**2)
        yield square
        least *= math.sqrt(square) / 2 * (3 - square * least**2)
