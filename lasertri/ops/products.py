"""The products that the ops are made of, in plain torch; `kernels/` has the same, fused.

Each is told the dtype to compute in, and widens its inputs panel by panel, so that no wider copy of a matrix exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Elements of a panel. On a CPU 16 MiB in FP64: enough for full GEMM speed, little enough for malloc to hand out again.
PANEL_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 24}
BAND = 1024  # rows of a product that keep a GPU busy


class Gram(Protocol):
    """`A Aᵀ` for every block `[B, m, n]`, `[B, m, m]` in `compute`; its lower triangle is what counts."""

    def __call__(self, matrix: Tensor, *, compute: torch.dtype) -> Tensor: ...


class Diagonal(Protocol):
    """`left[:, i]ᵀ matrix right[:, i]` for `[B, m, r]`, `[B, m, n]` and `[B, n, r]`: `[B, r]` in `compute`."""

    def __call__(self, left: Tensor, matrix: Tensor, right: Tensor, *, compute: torch.dtype) -> Tensor: ...


class PrefixProduct(Protocol):
    """`out[i] = left[..., :ranks[i]] @ right[..., :ranks[i], :] + bias`, summed in `compute`, rounded once.

    `[B, m, r]`, `[B, r, n]`, `[R, B, m, n]` and `[B, n]`; the ranks come in any order.
    """

    def __call__(
        self,
        left: Tensor,
        right: Tensor,
        ranks: Sequence[int],
        out: Tensor,
        bias: Tensor | None = None,
        *,
        compute: torch.dtype,
    ) -> None: ...


class ScaledProduct(Protocol):
    """`out = base + (left * scale) @ right`, summed in `compute`, rounded once.

    `[B, m, r]`, `[B, r]`, `[B, r, n]`, and `[B, m, n]` twice.
    """

    def __call__(
        self, left: Tensor, scale: Tensor, right: Tensor, base: Tensor, out: Tensor, *, compute: torch.dtype
    ) -> None: ...


class Products(NamedTuple):
    """One way to compute them."""

    gram: Gram
    diagonal: Diagonal
    prefix_product: PrefixProduct
    scaled_product: ScaledProduct


def panels(matrix: Tensor) -> Iterator[slice]:
    """Slices of the columns of `[…, m, n]`, none of more than `PANEL_ELEMENTS` elements (or one column)."""
    columns = matrix.shape[-1]
    limit = PANEL_ELEMENTS["cuda" if matrix.device.type == "cuda" else "cpu"]
    width = max(1, limit * columns // max(1, matrix.numel()))
    for start in range(0, columns, width):
        yield slice(start, start + width)


def gram(matrix: Tensor, *, compute: torch.dtype) -> Tensor:
    """Only the lower triangle is made, in at most four bands of rows: `eigh` reads no more."""
    rows = matrix.shape[-2]
    out = torch.zeros(*matrix.shape[:-1], rows, dtype=compute, device=matrix.device)
    band = max(256, -(-rows // 4))
    for columns in panels(matrix):
        panel = matrix[..., columns].to(compute)
        for start in range(0, rows, band):
            stop = min(start + band, rows)
            out[..., start:stop, :stop].baddbmm_(panel[..., start:stop, :], panel[..., :stop, :].mT)
    return out


def mirrored(lower: Tensor) -> Tensor:
    """All of a symmetric matrix `[…, n, n]` whose lower triangle counts."""
    return lower.tril() + lower.tril(-1).mT


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of `[…, n, k]` and `[…, k, n]` where it is symmetric, of its lower triangle in bands of rows.

    There are up to four. It is symmetric to the last digit: what is not would grow from one Newton-Schulz step to the
    next.
    """
    one, other = (side.reshape(-1, *side.shape[-2:]) for side in (left, right))
    size = one.shape[-2]
    out = one.new_empty(len(one), size, size)
    band = max(BAND, -(-size // 4))
    for start in range(0, size, band):
        rows = slice(start, min(start + band, size))
        torch.bmm(one[:, rows], other[..., : rows.stop], out=out[:, rows, : rows.stop])
        out[:, :start, rows] = out[:, rows, :start].mT
        square = out[:, rows, rows]
        out[:, rows, rows] = (square + square.mT) / 2
    return out.reshape(*left.shape[:-1], size)


def diagonal(left: Tensor, matrix: Tensor, right: Tensor, *, compute: torch.dtype) -> Tensor:
    """One product and its weighted sums over the rows."""
    return (left.to(compute) * (matrix.to(compute) @ right.to(compute))).sum(dim=-2)


def prefix_product(
    left: Tensor,
    right: Tensor,
    ranks: Sequence[int],
    out: Tensor,
    bias: Tensor | None = None,
    *,
    compute: torch.dtype,
) -> None:
    """A running sum over the ranks: the products of all of them cost as much as that of the largest."""
    left, right = left.to(compute), right.to(compute)
    total = torch.zeros(out.shape[1:], dtype=compute, device=out.device)
    if bias is not None:
        total += bias.unsqueeze(-2)
    done = 0
    for rank, i in sorted((rank, i) for i, rank in enumerate(ranks)):
        total.baddbmm_(left[..., done:rank], right[..., done:rank, :])
        out[i] = total
        done = rank


def scaled_product(
    left: Tensor, scale: Tensor, right: Tensor, base: Tensor, out: Tensor, *, compute: torch.dtype
) -> None:
    """One product, of the scaled factor."""
    scaled = left.to(compute) * scale.to(compute).unsqueeze(-2)
    out.copy_(torch.baddbmm(base.to(compute), scaled, right.to(compute)))


TORCH = Products(gram, diagonal, prefix_product, scaled_product)
