"""Operands of a product in the type that they are multiplied in."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widened(tile, COMPUTE: tl.constexpr):
    """A tile `[m, n]` cast to the type of the products.

    Triton before 3.9 lays out the operands of a product for the type that was loaded, and fails on FP64 products of
    BF16 or FP16. It looks for that type through casts, but not through a sum, here one of a single term.
    """
    if tile.dtype.primitive_bitwidth == 16 and COMPUTE == tl.float64:  # noqa: SIM300
        tile = tl.sum(tile.to(tl.float32)[:, :, None], axis=2)
    return tile.to(COMPUTE)
