"""The Gram matrix A Aᵀ of stacks of blocks: half of its tiles, each written to its two places.

It reads BF16, FP16 or FP32 and multiplies in FP64, so no FP64 copy of A is made, and it does half of the work that a
general product does. Products of BF16 or FP16 values are exact in FP32: an FP32 Gram matrix of such a weight is made
of them directly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lasertri.ops.kernels.launch import Launch, accumulator_type, arithmetic_constants
from lasertri.ops.kernels.tiles import Tiles, choose_tiles
from lasertri.ops.kernels.widen import widened


def gram(matrix: Tensor, *, compute: torch.dtype = torch.float64, precision: str = "ieee") -> Tensor:
    """`matrix @ matrixᵀ` for every block, exactly symmetric.

    Args:
        matrix: `[B, m, n]`, any strides and floating dtype.
        compute: type of the products; sums are FP64 for FP64, else FP32.
        precision: of FP32 products, "ieee", "tf32x3" or "tf32".

    Returns:
        `[B, m, m]` in FP64 or FP32, the type of the sums.
    """
    return launch(matrix, compute=compute, precision=precision).run()


def launch(
    matrix: Tensor, *, compute: torch.dtype = torch.float64, precision: str = "ieee", tiles: Tiles | None = None
) -> Launch:
    """The launch that `gram` makes; `tiles` other than the table's are for tuning."""
    batch, rows, columns = matrix.shape
    if tiles is None:
        tiles = choose_tiles(compute, precision, rows, rows, columns, [matrix])
    side = min(tiles.rows, tiles.columns)  # square tiles, so that half of them are the mirror of the other half
    count = triton.cdiv(rows, side)
    out = matrix.new_empty(batch, rows, rows, dtype=accumulator_type(compute))
    return Launch(
        _gram,
        batch * (count * (count + 1) // 2),
        {
            "matrix": matrix,
            "out": out,
            "rows": rows,
            "columns": columns,
            **dict(zip(("matrix_batch", "matrix_row", "matrix_column"), matrix.stride(), strict=True)),
        },
        {
            **arithmetic_constants(compute, precision),
            "SIDE": side,
            "INNER": tiles.inner,
        },
        tiles,
        out,
    )


@triton.jit
def _gram(
    matrix,
    out,  # [batch, rows, rows], contiguous
    rows,
    columns,
    matrix_batch,
    matrix_row,
    matrix_column,
    COMPUTE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    SIDE: tl.constexpr,
    INNER: tl.constexpr,
):
    program = tl.program_id(0)
    count = tl.cdiv(rows, SIDE)
    tiles = count * (count + 1) // 2
    batch = (program // tiles).to(tl.int64)
    tile = program % tiles
    # tile t of the lower triangle, row by row: the last row that starts at or before t
    row_tile = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) / 2.0).to(tl.int32)
    row_tile = tl.where(row_tile * (row_tile + 1) // 2 > tile, row_tile - 1, row_tile)
    row_tile = tl.where((row_tile + 1) * (row_tile + 2) // 2 <= tile, row_tile + 1, row_tile)
    column_tile = tile - row_tile * (row_tile + 1) // 2
    row = row_tile.to(tl.int64) * SIDE + tl.arange(0, SIDE)
    other = column_tile.to(tl.int64) * SIDE + tl.arange(0, SIDE)
    row_inside, other_inside = row < rows, other < rows
    lefts = matrix + batch * matrix_batch + row[:, None] * matrix_row
    rights = matrix + batch * matrix_batch + other[None, :] * matrix_row

    total = tl.zeros((SIDE, SIDE), dtype=SUM)
    for start in range(0, columns, INNER):
        inner = start + tl.arange(0, INNER)
        inside = inner < columns
        inner = inner.to(tl.int64)
        a = tl.load(lefts + inner[None, :] * matrix_column, mask=row_inside[:, None] & inside[None, :], other=0)
        b = tl.load(rights + inner[:, None] * matrix_column, mask=inside[:, None] & other_inside[None, :], other=0)
        total = tl.dot(widened(a, COMPUTE), widened(b, COMPUTE), total, input_precision=PRECISION, out_dtype=SUM)
    square = out + batch * rows * rows
    inside_both = row_inside[:, None] & other_inside[None, :]
    lower = inside_both & (row[:, None] >= other[None, :])
    strictly = inside_both & (row[:, None] > other[None, :])  # each place is written once: no race on the diagonal
    tl.store(square + row[:, None] * rows + other[None, :], total, mask=lower)
    tl.store(square + other[None, :] * rows + row[:, None], total, mask=strictly)
