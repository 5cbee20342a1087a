"""All leading products of two stacks at once: `left[:, :k] @ right[:k, :]` for every rank k asked for, in one pass.

The sum over the shared dimension runs once, and is written out whenever it reaches a rank. With left = Q and
right = QᵀA these are the truncations of a wide block A, with left = A Q and right = Qᵀ those of a tall one, and with
activations on the left they are a linear layer's outputs under every truncation of its weight.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lasertri.ops.kernels.launch import INTERPRETED, Launch, arithmetic_constants
from lasertri.ops.kernels.tiles import Tiles, choose_tiles
from lasertri.ops.kernels.widen import widened


def prefix_product(
    left: Tensor,
    right: Tensor,
    ranks: Sequence[int],
    out: Tensor,
    bias: Tensor | None = None,
    *,
    compute: torch.dtype = torch.float32,
    precision: str = "ieee",
) -> None:
    """`out[i] = left[..., :ranks[i]] @ right[..., :ranks[i], :] + bias`, each rounded once to the type of `out`.

    Args:
        left, right: `[B, m, r]` and `[B, r, n]`, any strides and floating dtypes.
        ranks: R of them, from 0 to r, in any order.
        out: `[R, B, m, n]`, any strides and dtype; written.
        bias: `[B, n]`, any strides and dtype.
        compute: type of the products; sums are FP64 for FP64, else FP32.
        precision: of FP32 products, "ieee", "tf32x3" or "tf32".
    """
    # interpreted, FP32 is cut to BF16, not rounded: torch rounds it then
    written = out.float() if INTERPRETED and out.dtype == torch.bfloat16 else out
    launch(left, right, ranks, written, bias, compute=compute, precision=precision).run()
    if written is not out:
        out.copy_(written)


def launch(
    left: Tensor,
    right: Tensor,
    ranks: Sequence[int],
    out: Tensor,
    bias: Tensor | None = None,
    *,
    compute: torch.dtype = torch.float32,
    precision: str = "ieee",
    tiles: Tiles | None = None,
) -> Launch:
    """The launch that `prefix_product` makes; `tiles` other than the table's are for tuning."""
    count, batch, rows, columns = out.shape
    if tiles is None:
        tiles = choose_tiles(compute, precision, rows, columns, left.shape[-1], [left, right, out])
    added = left.new_empty(1, 1) if bias is None else bias
    return Launch(
        _prefix_product,
        batch * triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns),
        {
            "left": left,
            "right": right,
            "bias": added,
            "ranks": _ascending(tuple(ranks), left.device),
            "out": out,
            "rows": rows,
            "columns": columns,
            "requests": count,
            **dict(zip(("left_batch", "left_row", "left_inner"), left.stride(), strict=True)),
            **dict(zip(("right_batch", "right_inner", "right_column"), right.stride(), strict=True)),
            **dict(zip(("bias_batch", "bias_column"), added.stride(), strict=True)),
            **dict(zip(("out_request", "out_batch", "out_row", "out_column"), out.stride(), strict=True)),
        },
        {
            "HAS_BIAS": bias is not None,
            **arithmetic_constants(compute, precision),
            "ROWS": tiles.rows,
            "COLUMNS": tiles.columns,
            "INNER": tiles.inner,
        },
        tiles,
        out,
    )


def _ascending(ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """`[R, 2]`: each rank with its place, by ascending rank, for work on the device's current stream."""
    pairs = _kept(ranks, device)
    if pairs.is_cuda:  # its memory is given to nobody else before that work is done, even if it is kept no longer
        pairs.record_stream(torch.cuda.current_stream(device))
    return pairs


@functools.lru_cache(maxsize=64)
def _kept(ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, because copying it to a GPU waits for the GPU."""
    pairs = sorted((rank, request) for request, rank in enumerate(ranks))
    return torch.tensor(pairs, dtype=torch.int32, device=device)


@triton.jit
def _prefix_product(
    left,
    right,
    bias,
    ranks,  # [requests, 2]: rank and place in `out`, by ascending rank
    out,
    rows,
    columns,
    requests,
    left_batch,
    left_row,
    left_inner,
    right_batch,
    right_inner,
    right_column,
    bias_batch,
    bias_column,
    out_request,
    out_batch,
    out_row,
    out_column,
    HAS_BIAS: tl.constexpr,
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
    lefts = left + batch * left_batch + row[:, None] * left_row
    rights = right + batch * right_batch + column[None, :] * right_column
    outs = out + batch * out_batch + row[:, None] * out_row + column[None, :] * out_column
    if HAS_BIAS:
        added = tl.load(bias + batch * bias_batch + column * bias_column, mask=column_inside, other=0).to(SUM)

    total = tl.zeros((ROWS, COLUMNS), dtype=SUM)
    done = 0
    for request in range(requests):
        rank = tl.load(ranks + 2 * request)
        place = tl.load(ranks + 2 * request + 1).to(tl.int64)
        for start in range(done, rank, INNER):
            inner = start + tl.arange(0, INNER)
            inside = inner < rank
            inner = inner.to(tl.int64)
            a = tl.load(lefts + inner[None, :] * left_inner, mask=row_inside[:, None] & inside[None, :], other=0)
            b = tl.load(rights + inner[:, None] * right_inner, mask=inside[:, None] & column_inside[None, :], other=0)
            total = tl.dot(widened(a, COMPUTE), widened(b, COMPUTE), total, input_precision=PRECISION, out_dtype=SUM)
        done = rank
        result = total
        if HAS_BIAS:
            result += added[None, :]
        if out.dtype.element_ty != tl.float64:  # the interpreter has no way from FP64 to BF16 but through FP32
            result = result.to(tl.float32)
        result = result.to(out.dtype.element_ty)
        tl.store(outs + place * out_request, result, mask=row_inside[:, None] & column_inside[None, :])
