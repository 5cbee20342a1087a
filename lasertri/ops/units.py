"""Matrices in units of their own, so that their squares neither over- nor underflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def in_own_units(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`[…, p, q]` divided by a power of four near its largest value, in `dtype`, and the power's root.

    Returns:
        The matrix, with values up to 4, and the exponent k `[…, 1, 1]` of the root: the matrix given is 4^k times it.
    """
    wide = torch.promote_types(matrix.dtype, dtype)
    least = round(math.log2(torch.finfo(wide).tiny)) // 2  # a larger power could not be multiplied with
    largest = matrix.abs().amax((-2, -1), keepdim=True).to(wide)
    k = (torch.frexp(largest).exponent // 2).clamp(min=least)
    return (matrix * torch.ldexp(torch.ones_like(largest), -2 * k)).to(dtype), k
