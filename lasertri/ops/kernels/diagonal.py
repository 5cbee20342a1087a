"""The diagonal of Uᵀ G V for stacks of blocks, without the product that it is the diagonal of.

Each program multiplies one tile of rows of G into V, weights the result with U and sums it over its rows; a second,
ordinary sum adds the tiles of rows. No atomics: the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lasertri.ops.kernels.launch import Launch, accumulator_type, arithmetic_constants
from lasertri.ops.kernels.tiles import Tiles, choose_tiles
from lasertri.ops.kernels.widen import widened


def diagonal(
    left: Tensor, matrix: Tensor, right: Tensor, *, compute: torch.dtype = torch.float64, precision: str = "ieee"
) -> Tensor:
    """`d_i = left[:, i]ᵀ matrix right[:, i]` for every block.

    The gradients of the singular values are this with U, G and V, or, divided by σ, with Q, C = G Aᵀ and Q (wide
    blocks; C = Gᵀ A for tall ones).

    Args:
        left, matrix, right: `[B, m, r]`, `[B, m, n]`, `[B, n, r]`, any strides and floating dtypes.
        compute: type of the products; sums are FP64 for FP64, else FP32.
        precision: of FP32 products, "ieee", "tf32x3" or "tf32".

    Returns:
        `[B, r]` in FP64 or FP32, the type of the sums.
    """
    return launch(left, matrix, right, compute=compute, precision=precision).run().sum(0)


def launch(
    left: Tensor,
    matrix: Tensor,
    right: Tensor,
    *,
    compute: torch.dtype = torch.float64,
    precision: str = "ieee",
    tiles: Tiles | None = None,
) -> Launch:
    """The launch that `diagonal` makes, with a sum for each tile of rows; `tiles` are the table's except to tune it."""
    batch, rows, columns = matrix.shape
    ranks = left.shape[-1]
    if tiles is None:
        tiles = choose_tiles(compute, precision, rows, ranks, columns, [left, matrix, right])
    row_tiles = triton.cdiv(rows, tiles.rows)
    partial = matrix.new_empty(row_tiles, batch, ranks, dtype=accumulator_type(compute))
    return Launch(
        _diagonal,
        batch * row_tiles * triton.cdiv(ranks, tiles.columns),
        {
            "left": left,
            "matrix": matrix,
            "right": right,
            "partial": partial,
            "batches": batch,
            "rows": rows,
            "columns": columns,
            "ranks": ranks,
            **dict(zip(("left_batch", "left_row", "left_rank"), left.stride(), strict=True)),
            **dict(zip(("matrix_batch", "matrix_row", "matrix_column"), matrix.stride(), strict=True)),
            **dict(zip(("right_batch", "right_column", "right_rank"), right.stride(), strict=True)),
        },
        {
            **arithmetic_constants(compute, precision),
            "ROWS": tiles.rows,
            "RANKS": tiles.columns,
            "INNER": tiles.inner,
        },
        tiles,
        partial,
    )


@triton.jit
def _diagonal(
    left,
    matrix,
    right,
    partial,  # [tiles of rows, batches, ranks], contiguous
    batches,
    rows,
    columns,
    ranks,
    left_batch,
    left_row,
    left_rank,
    matrix_batch,
    matrix_row,
    matrix_column,
    right_batch,
    right_column,
    right_rank,
    COMPUTE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    INNER: tl.constexpr,
):
    program = tl.program_id(0)
    rank_tiles = tl.cdiv(ranks, RANKS)
    tiles = tl.cdiv(rows, ROWS) * rank_tiles
    batch = (program // tiles).to(tl.int64)
    row_tile = ((program % tiles) // rank_tiles).to(tl.int64)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    rank = (program % rank_tiles).to(tl.int64) * RANKS + tl.arange(0, RANKS)
    row_inside, rank_inside = row < rows, rank < ranks
    matrices = matrix + batch * matrix_batch + row[:, None] * matrix_row
    rights = right + batch * right_batch + rank[None, :] * right_rank

    product = tl.zeros((ROWS, RANKS), dtype=SUM)
    for start in range(0, columns, INNER):
        inner = start + tl.arange(0, INNER)
        inside = inner < columns
        inner = inner.to(tl.int64)
        g = tl.load(matrices + inner[None, :] * matrix_column, mask=row_inside[:, None] & inside[None, :], other=0)
        v = tl.load(rights + inner[:, None] * right_column, mask=inside[:, None] & rank_inside[None, :], other=0)
        product = tl.dot(widened(g, COMPUTE), widened(v, COMPUTE), product, input_precision=PRECISION, out_dtype=SUM)
    lefts = left + batch * left_batch + row[:, None] * left_row + rank[None, :] * left_rank
    u = tl.load(lefts, mask=row_inside[:, None] & rank_inside[None, :], other=0)
    place = partial + (row_tile * batches + batch) * ranks + rank
    tl.store(place, tl.sum(product * u.to(SUM), axis=0), mask=rank_inside)
