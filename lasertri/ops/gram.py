"""The `gram` backend: one GEMM and one symmetric eigenproblem of each block's short side, on any device.

A wide block A = U Σ Vᵀ has A Aᵀ = U Σ² Uᵀ, so Q = U comes from an eigenproblem of its rows alone and
∂L/∂σᵢ = qᵢᵀ (G Aᵀ) qᵢ / σᵢ; a tall block is treated as its transpose. Squaring the matrix squares its condition,
hence FP64 throughout; σᵢ is the Rayleigh norm ‖Aᵀqᵢ‖, which is accurate where √λᵢ is not.

All functions take equal blocks `[B, b, n]` of any floating dtype. What they multiply with is a parameter: the
`triton` backend is these functions on its own kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from lasertri.ops import reference
from lasertri.ops.blocks import BlockError, Side
from lasertri.ops.eigen import divides, eigenvectors, workspace_squares
from lasertri.ops.krylov import leading_vectors
from lasertri.ops.products import PANEL_ELEMENTS, TORCH, Products, panels
from lasertri.ops.reference import Pair, gradient_floor
from lasertri.ops.truncate import dtype_to_try, guarded_reduce, resolved_in_fp32
from lasertri.ops.units import in_own_units
from lasertri.ops.whiten import whiten_blocks, whiten_moments

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


def workspace_bytes(blocks: int, rows: int, columns: int, device: torch.device) -> int:
    """Upper bound on the FP64 bytes that factoring and scoring equal blocks takes beside their inputs."""
    short = min(rows, columns)
    squares = 5 * blocks  # Gram, eigenvectors, LAPACK's two work squares and C = G Aᵀ
    if divides(short, device):
        squares = max(squares, workspace_squares(blocks))
    panel = PANEL_ELEMENTS["cuda" if device.type == "cuda" else "cpu"]
    return 8 * (squares * short * short + 3 * min(panel, blocks * rows * columns))


def block_svd(
    blocks: Tensor,
    side: Side,
    method: str = "auto",
    *,
    dtype: torch.dtype = torch.float64,
    products: Products = TORCH,
) -> tuple[Tensor, Tensor]:
    """Basis Q `[B, b, r]` ("left") or `[B, n, r]` ("right") and singular values `[B, r]`, descending."""
    short = short_first(blocks, side)
    basis = _eigenvectors(short, dtype, products)
    squares = torch.zeros_like(basis[..., 0, :])
    for columns in panels(short):
        squares += (basis.mT @ short[..., columns].to(dtype)).square().sum(-1)
    sigma, order = squares.sqrt().sort(descending=True, stable=True)
    return basis.gather(-1, order.unsqueeze(-2).expand_as(basis)), sigma


def score_blocks(
    blocks: Tensor,
    grads: Tensor,
    side: Side,
    factors: tuple[Tensor, Tensor] | None = None,
    *,
    products: Products = TORCH,
) -> tuple[Tensor, Tensor]:
    """Singular values and their gradients ∂L/∂σᵢ = qᵢᵀ (G Aᵀ) qᵢ / σᵢ, each `[B, r]`."""
    a, g = short_first(blocks, side), short_first(grads, side)
    diagonal = functools.partial(products.diagonal, compute=torch.float64)
    if factors is None:  # both projections at hand: one GEMM less than C = G Aᵀ and C Q
        basis = _eigenvectors(a, torch.float64, products)
        squares, slopes = torch.zeros_like(basis[..., 0, :]), torch.zeros_like(basis[..., 0, :])
        for columns in panels(a):
            coordinates = basis.mT @ a[..., columns].double()
            squares += coordinates.square().sum(-1)
            slopes += diagonal(basis, g[..., columns], coordinates.mT)
        sigma, order = squares.sqrt().sort(descending=True, stable=True)
        slopes = slopes.gather(-1, order)
    else:
        basis, sigma = factors
        contracted = basis.new_zeros(*a.shape[:-1], a.shape[-2])
        for columns in panels(a):
            contracted.baddbmm_(g[..., columns].double(), a[..., columns].double().mT)
        slopes = diagonal(basis, contracted, basis)
    resolved = sigma > gradient_floor(sigma, min(blocks.shape[-2:]))
    return sigma, torch.where(resolved, slopes / torch.where(resolved, sigma, 1), 0)


def reduce_blocks(
    blocks: Tensor,
    side: Side,
    ranks: Sequence[int],
    basis: Tensor | None = None,
    *,
    precision: str = "float64",
    products: Products = TORCH,
) -> Tensor:
    """Projections A_k = Q_k Q_kᵀ A (or A Q_k Q_kᵀ) for all ranks as running sums, `[R, B, b, n]`."""
    factor = functools.partial(block_svd, products=products)
    projected = functools.partial(project, products=products)
    return guarded_reduce(blocks, side, ranks, basis, precision, factor, projected)


def project(blocks: Tensor, side: Side, ranks: Sequence[int], basis: Tensor, *, products: Products = TORCH) -> Tensor:
    """Truncations of equal blocks at all ranks, computed in the basis's dtype: `[B, b, n]` -> `[R, B, b, n]`."""
    out = torch.empty(len(ranks), *blocks.shape, dtype=blocks.dtype, device=blocks.device)
    source, destination = short_first(blocks, side), short_first(out, side)
    whole = [i for i, rank in enumerate(ranks) if rank == min(blocks.shape[-2:])]  # nothing is removed
    asked = [0 if i in whole else rank for i, rank in enumerate(ranks)]
    basis = basis[..., : max(asked, default=0)]
    for columns in panels(source):
        coordinates = basis.mT @ source[..., columns].to(basis.dtype)
        products.prefix_product(basis, coordinates, asked, destination[..., columns], compute=basis.dtype)
    for i in whole:
        out[i] = blocks
    return out


def scale_blocks(
    blocks: Tensor,
    scales: Tensor,
    side: Side,
    basis: Tensor,
    *,
    precision: str = "float64",
    products: Products = TORCH,
) -> Tensor:
    """A + Q diag(s − 1) Qᵀ A (or A + A Q diag(s − 1) Qᵀ), `[B, b, n]`: what is not changed keeps every digit."""
    out = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    source, destination = short_first(blocks, side), short_first(out, side)
    compute = torch.promote_types(getattr(torch, precision), blocks.dtype)  # an FP64 weight is worth FP64
    basis, change = basis.to(compute), scales.double() - 1
    for columns in panels(source):
        panel = source[..., columns]
        coordinates = basis.mT @ panel.to(compute)
        products.scaled_product(basis, change, coordinates, panel, destination[..., columns], compute=compute)
    return out


def linear_blocks(
    x: Tensor,
    blocks: Tensor,
    side: Side,
    ranks: Sequence[int],
    basis: Tensor,
    projected: Tensor | None,
    bias: Tensor | None,
    *,
    products: Products = TORCH,
) -> Tensor:
    """`x A_kᵀ + bias` for all ranks with no A_k made: from the output of a wide block, the input of a tall one.

    x `[T, n]`; projected A Q `[B, b, r]` where it is known; bias `[B, b]` -> `[R, T, B, b]` in the dtype of x.
    """
    compute = torch.float64 if torch.float64 in (x.dtype, blocks.dtype) else torch.float32
    basis, wide_x = basis[..., : max(ranks)].to(compute), x.to(compute)
    if side == "left":
        rows = blocks.flatten(0, 1)
        output = torch.cat([wide_x @ rows[panel].to(compute).mT for panel in panels(rows.mT)], dim=-1)
        left, right = output.unflatten(-1, blocks.shape[:2]).transpose(0, 1) @ basis, basis.mT
    else:
        if projected is None:
            parts = [blocks[:, panel].to(compute) @ basis for panel in panels(blocks.mT)]
            projected = torch.cat(parts, dim=1)
        left, right = wide_x @ basis, projected[..., : basis.shape[-1]].to(compute).mT
    out = x.new_empty(len(ranks), len(x), *blocks.shape[:2])
    products.prefix_product(left, right, ranks, out.transpose(1, 2), bias, compute=compute)
    return out


def lowrank_blocks(blocks: Tensor, rank: int, *, precision: str = "float64", products: Products = TORCH) -> Pair:
    """Best rank of equal blocks `[B, b, n]`: left `[B, b, k]`, right `[B, k, n]` and σ `[B, k]`; √σ on both sides."""
    side: Side = "left" if blocks.shape[-2] <= blocks.shape[-1] else "right"
    rank = min(rank, *blocks.shape[-2:])
    if blocks.dtype == torch.float64:  # squares of narrower types always fit
        units, k = in_own_units(blocks, torch.float64)
        left, right, sigma = (part.double() for part in _lowrank(units, side, rank, precision, products))
        return torch.ldexp(left, k), torch.ldexp(right, k), torch.ldexp(sigma, 2 * k[..., 0])
    return _lowrank(blocks, side, rank, precision, products)


def _lowrank(blocks: Tensor, side: Side, rank: int, precision: str, products: Products) -> Pair:
    dtype, short = dtype_to_try(blocks, [rank], precision), short_first(blocks, side)
    basis = leading_vectors(short, rank, dtype)
    if basis is None:
        basis, sigma = block_svd(blocks, side, dtype=dtype, products=products)
        if dtype == torch.float32 and not resolved_in_fp32(sigma, [rank], basis.shape[-2]).all():
            basis, _ = block_svd(blocks, side, products=products)
        basis = basis[..., :rank]
    coordinates = torch.cat([basis.mT @ short[..., columns].to(basis.dtype) for columns in panels(short)], dim=-1)
    sigma, order = coordinates.norm(dim=-1).sort(descending=True, stable=True)
    basis = basis.gather(-1, order.unsqueeze(-2).expand_as(basis))
    coordinates = coordinates.gather(-2, order.unsqueeze(-1).expand_as(coordinates))
    root = sigma.sqrt().unsqueeze(-1)
    across = coordinates * torch.where(root > 0, 1 / root, 0)
    kept = basis * root.mT
    return (kept, across, sigma) if side == "left" else (across.mT, kept.mT, sigma)


def moment_root(moment: Tensor, damping: float) -> Tensor:
    """R with R Rᵀ = C + λ, λ = damping · tr(C) / n, of second moments `[…, n, n]` in FP64; of zeros I."""
    damped = moment.clone()
    diagonal = damped.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    diagonal += torch.where(mean > 0, damping * mean, 1)
    root, failed = torch.linalg.cholesky_ex(damped)
    # one rounded to BF16, say, may have negative eigenvalues larger than λ
    return reference.moment_root(moment, damping) if failed.any() else root


def short_first(blocks: Tensor, side: Side) -> Tensor:
    """A view with the short side first, `[B, s, l]`, whose left singular vectors are the basis."""
    return blocks if side == "left" else blocks.mT


def check_squares(blocks: Tensor) -> None:
    """Refuse finite blocks whose squares would overflow FP64, or lose digits to underflow."""
    if blocks.dtype != torch.float64 or not blocks.numel():  # squares of narrower types always fit
        return
    largest = torch.linalg.vector_norm(blocks, torch.inf, dim=(-2, -1))
    lost = largest.isfinite() & (largest != 0) & ((largest < 1e-140) | (largest > 1e140))
    if lost.any():
        index = int(lost.nonzero()[0])
        got = "larger" if largest[index] > 1 else "smaller"
        advice = "; scale them, or use backend='reference'"
        raise BlockError(index, f"expected values whose squares torch.float64 can hold, got {got} ones", advice)


def _eigenvectors(short: Tensor, dtype: torch.dtype, products: Products) -> Tensor:
    """Eigenvectors of A Aᵀ by descending eigenvalue, `[B, s, l]` -> `[B, s, min(s, l)]`."""
    check_squares(short)
    vectors = eigenvectors(products.gram(short, compute=dtype))
    return vectors.flip(-1)[..., : min(short.shape[-2:])]
