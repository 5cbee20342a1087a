"""A product added to a matrix, with its shared dimension scaled: `base + (left * scale) @ right`, in one pass.

With left = Q, right = QᵀA and scale = s − 1 it is a wide block A with singular value i multiplied by sᵢ; with
left = A Q and right = Qᵀ a tall one. Neither the scaled factor nor the product reaches memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lasertri.ops.kernels.launch import INTERPRETED, Launch, arithmetic_constants
from lasertri.ops.kernels.tiles import Tiles, choose_tiles
from lasertri.ops.kernels.widen import widened


def scaled_product(
    left: Tensor,
    scale: Tensor,
    right: Tensor,
    base: Tensor,
    out: Tensor,
    *,
    compute: torch.dtype = torch.float32,
    precision: str = "ieee",
) -> None:
    """`out = base + (left * scale) @ right`, rounded once to the type of `out`.

    Args:
        left, right: `[B, m, r]` and `[B, r, n]`, any strides and floating dtypes.
        scale: `[B, r]`, any strides and floating dtype; it multiplies in the type of the products.
        base: `[B, m, n]`, any strides and floating dtype.
        out: `[B, m, n]`, any strides and dtype; written. It may be `base`.
        compute: type of the products; sums are FP64 for FP64, else FP32.
        precision: of FP32 products, "ieee", "tf32x3" or "tf32".
    """
    # interpreted, FP32 is cut to BF16, not rounded: torch rounds it then
    written = out.float() if INTERPRETED and out.dtype == torch.bfloat16 else out
    launch(left, scale, right, base, written, compute=compute, precision=precision).run()
    if written is not out:
        out.copy_(written)


def launch(
    left: Tensor,
    scale: Tensor,
    right: Tensor,
    base: Tensor,
    out: Tensor,
    *,
    compute: torch.dtype = torch.float32,
    precision: str = "ieee",
    tiles: Tiles | None = None,
) -> Launch:
    """The launch that `scaled_product` makes; `tiles` other than the table's are for tuning."""
    batch, rows, columns = out.shape
    ranks = left.shape[-1]
    if tiles is None:
        tiles = choose_tiles(compute, precision, rows, columns, ranks, [left, right, base, out])
    return Launch(
        _scaled_product,
        batch * triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns),
        {
            "left": left,
            "scale": scale,
            "right": right,
            "base": base,
            "out": out,
            "rows": rows,
            "columns": columns,
            "ranks": ranks,
            **dict(zip(("left_batch", "left_row", "left_rank"), left.stride(), strict=True)),
            **dict(zip(("scale_batch", "scale_rank"), scale.stride(), strict=True)),
            **dict(zip(("right_batch", "right_rank", "right_column"), right.stride(), strict=True)),
            **dict(zip(("base_batch", "base_row", "base_column"), base.stride(), strict=True)),
            **dict(zip(("out_batch", "out_row", "out_column"), out.stride(), strict=True)),
        },
        {
            **arithmetic_constants(compute, precision),
            "ROWS": tiles.rows,
            "COLUMNS": tiles.columns,
            "INNER": tiles.inner,
        },
        tiles,
        out,
    )


@triton.jit
def _scaled_product(
    left,
    scale,
    right,
    base,
    out,
    rows,
    columns,
    ranks,
    left_batch,
    left_row,
    left_rank,
    scale_batch,
    scale_rank,
    right_batch,
    right_rank,
    right_column,
    base_batch,
    base_row,
    base_column,
    out_batch,
    out_row,
    out_column,
    COMPUTE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    program = tl.program_id(0)
    column_tiles = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * column_tiles
    batch = (program // tiles).to(tl.int64)
    row = ((program % tiles) // column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % column_tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, column_inside = row < rows, column < columns
    inside_both = row_inside[:, None] & column_inside[None, :]
    lefts = left + batch * left_batch + row[:, None] * left_row
    rights = right + batch * right_batch + column[None, :] * right_column
    scales = scale + batch * scale_batch

    total = tl.zeros((ROWS, COLUMNS), dtype=SUM)
    for start in range(0, ranks, INNER):
        rank = start + tl.arange(0, INNER)
        inside = rank < ranks
        rank = rank.to(tl.int64)
        a = tl.load(lefts + rank[None, :] * left_rank, mask=row_inside[:, None] & inside[None, :], other=0)
        s = tl.load(scales + rank * scale_rank, mask=inside, other=0)
        b = tl.load(rights + rank[:, None] * right_rank, mask=inside[:, None] & column_inside[None, :], other=0)
        scaled = (a.to(SUM) * s.to(SUM)[None, :]).to(COMPUTE)
        total = tl.dot(scaled, widened(b, COMPUTE), total, input_precision=PRECISION, out_dtype=SUM)
    bases = base + batch * base_batch + row[:, None] * base_row + column[None, :] * base_column
    added = tl.load(bases, mask=inside_both, other=0)
    result = total + added.to(SUM)
    if out.dtype.element_ty != tl.float64:  # the interpreter has no way from FP64 to BF16 but through FP32
        result = result.to(tl.float32)
    outs = out + batch * out_batch + row[:, None] * out_row + column[None, :] * out_column
    tl.store(outs, result.to(out.dtype.element_ty), mask=inside_both)
