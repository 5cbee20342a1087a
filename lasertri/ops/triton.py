"""The `triton` backend: the functions of `gram` on fused kernels.

Products that nothing can be fused with stay cuBLAS's: QᵀA, and C = G Aᵀ where factors are given. The eigenproblem is
torch's.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lasertri.ops import gram
from lasertri.ops.gram import workspace_bytes
from lasertri.ops.kernels.diagonal import diagonal as fused_diagonal
from lasertri.ops.kernels.gram import gram as fused_gram
from lasertri.ops.kernels.prefix_product import prefix_product as fused_prefix_product
from lasertri.ops.kernels.scaled_product import scaled_product as fused_scaled_product
from lasertri.ops.products import Products

__all__ = [
    "block_svd",
    "linear_blocks",
    "lowrank_blocks",
    "moment_root",
    "reduce_blocks",
    "scale_blocks",
    "score_blocks",
    "whiten_blocks",
    "whiten_moments",
    "workspace_bytes",
]

FP32 = "tf32x3"  # as exact as FP32 products (both lose what the Gram matrix squares), and on tensor cores


def _gram(matrix: Tensor, *, compute: torch.dtype) -> Tensor:
    if compute == torch.float32 and matrix.dtype in (torch.bfloat16, torch.float16):
        compute = matrix.dtype  # products of two such values are exact in FP32
    return fused_gram(matrix, compute=compute, precision=FP32)


FUSED = Products(
    _gram,
    functools.partial(fused_diagonal, precision=FP32),
    functools.partial(fused_prefix_product, precision=FP32),
    functools.partial(fused_scaled_product, precision=FP32),
)

block_svd = functools.partial(gram.block_svd, products=FUSED)
score_blocks = functools.partial(gram.score_blocks, products=FUSED)
reduce_blocks = functools.partial(gram.reduce_blocks, products=FUSED)
linear_blocks = functools.partial(gram.linear_blocks, products=FUSED)
lowrank_blocks = functools.partial(gram.lowrank_blocks, products=FUSED)
scale_blocks = functools.partial(gram.scale_blocks, products=FUSED)
moment_root = gram.moment_root
whiten_blocks = gram.whiten_blocks
whiten_moments = gram.whiten_moments
