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
    short = _short_first(blocks, side)
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
    a, g = _short_first(blocks, side), _short_first(grads, side)
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
    """Projections A_k = Q_k Q_kᵀ A (or A Q_k Q_kᵀ) for all ranks as running sums, `[R, B, b, n]`.

    In "float32" a block whose spectrum that Gram matrix cannot resolve at some rank is computed in FP64.
    """
    dtype = getattr(torch, precision)
    if basis is not None:
        return _project(blocks, side, ranks, basis.to(dtype))
    if dtype == torch.float32 and not (_worth_fp32(blocks, ranks) and _squares_fit_fp32(blocks)):
        dtype = torch.float64
    basis, sigma = block_svd(blocks, side, dtype=dtype)
    reduced = _project(blocks, side, ranks, basis)
    if dtype == torch.float32:
        unresolved = ~_resolved_in_fp32(sigma, ranks, basis.shape[-2])
        if unresolved.any():
            reduced[:, unresolved] = reduce_blocks(blocks[unresolved], side, ranks)
    return reduced


def _worth_fp32(blocks: Tensor, ranks: Sequence[int]) -> bool:
    """Whether even a Gaussian block of this shape, the flattest there is, would be resolved in FP32.

    Its smallest singular value is (1 - √γ) / (1 + √γ) of its largest, γ = short side over long side (Marchenko and
    Pastur, 1967): nearly square blocks cut near full rank would only come back for FP64.
    """
    short, long = sorted(blocks.shape[-2:])
    root = (short / long) ** 0.5
    deepest = max((k for k in ranks if k < short), default=0)
    return deepest <= short // 2 or (1 - root) / (1 + root) >= _fp32_floor(short)


def _squares_fit_fp32(blocks: Tensor) -> bool:
    """Whether no block's Gram matrix would overflow, or lose digits to underflow, in FP32."""
    largest = blocks.abs().flatten(1).amax(-1)
    return bool(((largest == 0) | ((largest > 1e-12) & (largest < 1e12))).all())


def _fp32_floor(short: int) -> float:
    return 10 * (short * torch.finfo(torch.float32).eps) ** 0.5


def _resolved_in_fp32(sigma: Tensor, ranks: Sequence[int], short: int) -> Tensor:
    """Whether σ_{k+1} ≥ 10·√(b·eps32)·σ₁ at every rank that cuts, `[B]`.

    Below that an FP32 Gram matrix mixes kept and removed directions: on a power-law spectrum of condition 1e4
    it lost 7 to 39 % of the optimal residual.
    """
    cut = [k for k in ranks if 0 < k < sigma.shape[-1]]
    return (sigma[..., cut] >= _fp32_floor(short) * sigma[..., :1]).all(-1)


def _project(blocks: Tensor, side: Side, ranks: Sequence[int], basis: Tensor) -> Tensor:
    full = min(blocks.shape[-2:])
    out = torch.empty(len(ranks), *blocks.shape, dtype=blocks.dtype, device=blocks.device)
    source, destination = _short_first(blocks, side), _short_first(out, side)
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


def _short_first(blocks: Tensor, side: Side) -> Tensor:
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
