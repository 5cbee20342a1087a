"""The `triton` backend: the functions of `gram` on fused kernels.

Products that nothing can be fused with stay cuBLAS's: QᵀA, and C = G Aᵀ where factors are given. The eigenproblem is
torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from torch.torch_version import TorchVersion

from lasertri.ops import gram
from lasertri.ops.gram import workspace_bytes
from lasertri.ops.kernels.diagonal import diagonal as fused_diagonal
from lasertri.ops.kernels.gram import gram as fused_gram
from lasertri.ops.kernels.prefix_product import prefix_product as fused_prefix_product
from lasertri.ops.kernels.scaled_product import scaled_product as fused_scaled_product
from lasertri.ops.kernels.tiles import capability_of
from lasertri.ops.products import TORCH, Products

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

LARGE_FP64_TILES = TorchVersion(triton.__version__) < "3.8"  # in one instruction; see `halves_fp64`
# On tensor cores, with operands as exact as FP32's; long sums lose digits there (`benchmarks/tensor_cores.py`).
FP32 = "tf32x3"


def halves_fp64(capability: tuple[int, int]) -> bool:
    """Whether Triton multiplies FP64 at half of the device's rate: on sm_90, in tiles of 8x8x4 and not of 16x8x16."""
    return capability == (9, 0) and not LARGE_FP64_TILES


def _gram(matrix: Tensor, *, compute: torch.dtype) -> Tensor:
    if compute == torch.float32 and matrix.dtype in (torch.bfloat16, torch.float16):
        compute = matrix.dtype  # products of two such values are exact in FP32
    return fused_gram(matrix, compute=compute, precision=FP32)


def _where_fast(fused: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Torch's product where the fused one takes twice as long, in FP64 on sm_90; else the fused one."""

    @functools.wraps(plain)
    def product(first: Tensor, *rest: Any, compute: torch.dtype) -> Any:
        slow = compute == torch.float64 and halves_fp64(capability_of(first.device))
        return (plain if slow else fused)(first, *rest, compute=compute)

    return product


FUSED = Products(
    _where_fast(_gram, TORCH.gram),
    _where_fast(functools.partial(fused_diagonal, precision=FP32), TORCH.diagonal),
    _where_fast(functools.partial(fused_prefix_product, precision=FP32), TORCH.prefix_product),
    _where_fast(functools.partial(fused_scaled_product, precision=FP32), TORCH.scaled_product),
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
