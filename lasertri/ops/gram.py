"""The `gram` backend: one GEMM and one symmetric eigenproblem of each block's short side, on any device.

A wide block A = U Σ Vᵀ has A Aᵀ = U Σ² Uᵀ, so Q = U comes from an eigenproblem of its rows alone and
∂L/∂σᵢ = qᵢᵀ (G Aᵀ) qᵢ / σᵢ; a tall block is treated as its transpose. Squaring the matrix squares its condition,
hence FP64 throughout; σᵢ is the Rayleigh norm ‖Aᵀqᵢ‖, which is accurate where √λᵢ is not. The long side is visited
in panels, so that no FP64 copy of a whole matrix exists.

All functions take equal blocks `[B, b, n]` of any floating dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lasertri.ops.blocks import Side
from lasertri.ops.reference import gradient_floor
from lasertri.ops.truncate import guarded_reduce

PANEL_ELEMENTS = 1 << 21  # 16 MiB in FP64: enough for full GEMM speed, little enough for malloc to hand out again


def workspace_bytes(blocks: int, rows: int, columns: int) -> int:
    """Upper bound on the FP64 bytes that factoring and scoring equal blocks takes beside their inputs."""
    short = min(rows, columns)
    square = blocks * short * short  # Gram, eigenvectors, LAPACK's two work squares and C = G Aᵀ
    return 8 * (5 * square + 3 * min(PANEL_ELEMENTS, blocks * rows * columns))


def block_svd(
    blocks: Tensor, side: Side, method: str = "auto", *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Basis Q `[B, b, r]` ("left") or `[B, n, r]` ("right") and singular values `[B, r]`, descending."""
    short = short_first(blocks, side)
    basis = _eigenvectors(short, dtype)
    squares = torch.zeros_like(basis[..., 0, :])
    for columns in _panels(short):
        squares += (basis.mT @ short[..., columns].to(dtype)).square().sum(-1)
    sigma, order = squares.sqrt().sort(descending=True, stable=True)
    return basis.gather(-1, order.unsqueeze(-2).expand_as(basis)), sigma


def score_blocks(
    blocks: Tensor, grads: Tensor, side: Side, factors: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Singular values and their gradients ∂L/∂σᵢ = qᵢᵀ (G Aᵀ) qᵢ / σᵢ, each `[B, r]`."""
    a, g = short_first(blocks, side), short_first(grads, side)
    if factors is None:  # both projections at hand: one GEMM less than C = G Aᵀ and C Q
        basis = _eigenvectors(a, torch.float64)
        squares, products = torch.zeros_like(basis[..., 0, :]), torch.zeros_like(basis[..., 0, :])
        for columns in _panels(a):
            coordinates = basis.mT @ a[..., columns].double()
            squares += coordinates.square().sum(-1)
            products += (basis.mT @ g[..., columns].double()).mul_(coordinates).sum(-1)
        sigma, order = squares.sqrt().sort(descending=True, stable=True)
        products = products.gather(-1, order)
    else:
        basis, sigma = factors
        contracted = basis.new_zeros(*a.shape[:-1], a.shape[-2])
        for columns in _panels(a):
            contracted.baddbmm_(g[..., columns].double(), a[..., columns].double().mT)
        products = (basis * (contracted @ basis)).sum(dim=-2)
    resolved = sigma > gradient_floor(sigma, min(blocks.shape[-2:]))
    return sigma, torch.where(resolved, products / torch.where(resolved, sigma, 1), 0)


def reduce_blocks(
    blocks: Tensor, side: Side, ranks: Sequence[int], basis: Tensor | None = None, *, precision: str = "float64"
) -> Tensor:
    """Projections A_k = Q_k Q_kᵀ A (or A Q_k Q_kᵀ) for all ranks as running sums, `[R, B, b, n]`."""
    return guarded_reduce(blocks, side, ranks, basis, precision, block_svd, project)


def project(blocks: Tensor, side: Side, ranks: Sequence[int], basis: Tensor) -> Tensor:
    """Truncations of equal blocks at all ranks, computed in the basis's dtype: `[B, b, n]` -> `[R, B, b, n]`."""
    full = min(blocks.shape[-2:])
    out = torch.empty(len(ranks), *blocks.shape, dtype=blocks.dtype, device=blocks.device)
    source, destination = short_first(blocks, side), short_first(out, side)
    for columns in _panels(source):
        panel = source[..., columns].to(basis.dtype)
        coordinates = basis.mT @ panel
        partial, done = torch.zeros_like(panel), 0
        for k, i in sorted((k, i) for i, k in enumerate(ranks)):
            if k == full:  # nothing is removed
                destination[i][..., columns] = source[..., columns]
            else:
                partial.baddbmm_(basis[..., done:k], coordinates[..., done:k, :])
                destination[i][..., columns] = partial
                done = k
    return out


def short_first(blocks: Tensor, side: Side) -> Tensor:
    """A view with the short side first, `[B, s, l]`, whose left singular vectors are the basis."""
    return blocks if side == "left" else blocks.mT


def _eigenvectors(short: Tensor, dtype: torch.dtype) -> Tensor:
    """Eigenvectors of A Aᵀ by descending eigenvalue, `[B, s, l]` -> `[B, s, min(s, l)]`.

    `eigh` reads the lower triangle, so of the Gram matrix only that is made, in at most four bands of rows.
    """
    rows = short.shape[-2]
    gram = torch.zeros(*short.shape[:-1], rows, dtype=dtype, device=short.device)
    band = max(256, -(-rows // 4))
    for columns in _panels(short):
        panel = short[..., columns].to(dtype)
        for start in range(0, rows, band):
            stop = min(start + band, rows)
            gram[..., start:stop, :stop].baddbmm_(panel[..., start:stop, :], panel[..., :stop, :].mT)
    return torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., : min(short.shape[-2:])]


def _panels(short_first: Tensor) -> Iterator[slice]:
    long = short_first.shape[-1]
    width = max(1, PANEL_ELEMENTS * long // max(1, short_first.numel()))
    for start in range(0, long, width):
        yield slice(start, start + width)
