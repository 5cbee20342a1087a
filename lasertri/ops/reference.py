"""The `reference` backend: plain `torch.linalg.svd` in FP64, slow and obvious. It is the definition of right.

All functions take equal blocks `[B, b, n]` of any floating dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lasertri.ops.blocks import Side

Pair = tuple[Tensor, Tensor, Tensor]  # left `[…, b, k]`, right `[…, k, n]` and σ `[…, k]`, with √σ on both sides


def gradient_floor(sigma: Tensor, short: int) -> Tensor:
    """σ at or below √(b·eps64)·σ₁ is not resolved: its gradient is 0 in every backend. `[B, r]` -> `[B, 1]`."""
    return (short * torch.finfo(torch.float64).eps) ** 0.5 * sigma[..., :1]


def workspace_bytes(blocks: int, rows: int, columns: int, device: torch.device) -> int:
    """Upper bound on the FP64 bytes that factoring and scoring equal blocks takes beside their inputs."""
    full, square = blocks * rows * columns, blocks * min(rows, columns) ** 2
    return 8 * (4 * full + 6 * square)  # A, G, U, Vᵀ; LAPACK's divide and conquer works in squares of the short side


def block_svd(blocks: Tensor, side: Side, method: str = "auto") -> tuple[Tensor, Tensor]:
    """Basis Q `[B, b, r]` ("left") or `[B, n, r]` ("right") and singular values `[B, r]`, descending."""
    u, sigma, vh = svd_by_qr(blocks.double())
    return (u if side == "left" else vh.mT), sigma


def score_blocks(
    blocks: Tensor, grads: Tensor, side: Side, factors: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Singular values and their gradients ∂L/∂σᵢ = uᵢᵀ G vᵢ (Lemma 1 of arXiv 2510.20800), each `[B, r]`."""
    a, g = blocks.double(), grads.double()
    if factors is None:
        u, sigma, vh = svd_by_qr(a)
        v = vh.mT
    else:
        basis, sigma = factors
        inverse = torch.where(sigma > 0, 1 / sigma, 0).unsqueeze(-2)
        u, v = (basis, a.mT @ basis * inverse) if side == "left" else (a @ basis * inverse, basis)
    grad = (u * (g @ v)).sum(dim=-2)
    return sigma, torch.where(sigma > gradient_floor(sigma, min(a.shape[-2:])), grad, 0)


def reduce_blocks(
    blocks: Tensor, side: Side, ranks: Sequence[int], basis: Tensor | None = None, *, precision: str = "float64"
) -> Tensor:
    """Best approximations of the given ranks (Eckart–Young), `[R, B, b, n]` in the dtype of the blocks."""
    a = blocks.to(getattr(torch, precision))
    if basis is not None:
        q = basis.to(a.dtype)
        kept = [q[..., :k] for k in ranks]
        truncated = [q_k @ (q_k.mT @ a) if side == "left" else (a @ q_k) @ q_k.mT for q_k in kept]
    else:
        u, sigma, vh = svd_by_qr(a)
        truncated = [(u[..., :k] * sigma[..., None, :k]) @ vh[..., :k, :] for k in ranks]
    return torch.stack([t.to(blocks.dtype) for t in truncated])


def scale_blocks(blocks: Tensor, scales: Tensor, side: Side, basis: Tensor, *, precision: str = "float64") -> Tensor:
    """Q diag(s) Qᵀ A (or A Q diag(s) Qᵀ) in FP64: singular value i times `scales[:, i]`, `[B, b, n]`."""
    a, scaled = blocks.double(), basis.double() * scales.double().unsqueeze(-2)
    out = scaled @ (basis.double().mT @ a) if side == "left" else (a @ scaled) @ basis.double().mT
    return out.to(blocks.dtype)


def linear_blocks(
    x: Tensor,
    blocks: Tensor,
    side: Side,
    ranks: Sequence[int],
    basis: Tensor,
    projected: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """`x A_kᵀ + bias` with every truncation A_k made in FP64, `[R, T, B, b]` in the dtype of x."""
    truncated = reduce_blocks(blocks.double(), side, ranks, basis)
    outputs = torch.einsum("tn,rkbn->rtkb", x.double(), truncated)
    return (outputs if bias is None else outputs + bias).to(x.dtype)


def lowrank_blocks(blocks: Tensor, rank: int, *, precision: str = "float64") -> Pair:
    """Best rank of equal blocks `[…, b, n]` (Eckart–Young): left `[…, b, k]`, right `[…, k, n]` and σ `[…, k]`."""
    u, sigma, vh = svd_by_qr(blocks.double())
    root = sigma[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :], sigma[..., :rank]


def whiten_blocks(
    deltas: Sequence[Tensor], inputs: Tensor, rank: int, damping: float, *, precision: str = "float64"
) -> list[Pair]:
    """`whiten_moments` of G = ΔᵀX, B = ΔᵀΔ and C = XᵀX, for groups of Δ `[S, K, T, b]` and for X `[S, T, n]`."""
    wide, x = [delta.double() for delta in deltas], inputs.double()
    grads, outputs = [d.mT @ x.unsqueeze(-3) for d in wide], [d.mT @ d for d in wide]
    return whiten_moments(grads, outputs, x.mT @ x, rank, damping)


def whiten_moments(
    grads: Sequence[Tensor],
    outputs: Sequence[Tensor],
    inputs: Tensor,
    rank: int,
    damping: float,
    *,
    precision: str = "float64",
) -> list[Pair]:
    """Best rank of (B+λ)^-½ G (C+λ)^-½ for groups of G `[S, K, b, n]` and B `[S, K, b, b]`, and C `[S, n, n]`."""
    right = _inverse_root(inputs.double(), damping).unsqueeze(-3)
    return [
        lowrank_blocks(_inverse_root(b.double(), damping) @ g.double() @ right, rank)
        for g, b in zip(grads, outputs, strict=True)
    ]


def svd_by_qr(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By QR iteration on CUDA, where torch's choice is Jacobi's method, less exact for small values and less sure."""
    return torch.linalg.svd(a, full_matrices=False, driver="gesvd" if a.is_cuda else None)


def moment_root(moment: Tensor, damping: float) -> Tensor:
    """R with R Rᵀ = C + λ, λ = damping · tr(C) / n, of second moments `[…, n, n]` in FP64; of zeros I."""
    damped, vectors = _damped(moment, damping)
    return vectors * damped.sqrt().unsqueeze(-2)


def _inverse_root(moment: Tensor, damping: float) -> Tensor:
    """(B + λ)^-½ with λ = damping · tr(B) / m for `[…, m, m]`; of zeros I, as any would do."""
    damped, vectors = _damped(moment, damping)
    return vectors * damped.rsqrt().unsqueeze(-2) @ vectors.mT


def _damped(moment: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues with λ, 1 in place of 0, and eigenvectors."""
    squares, vectors = torch.linalg.eigh(moment)
    squares = squares.clamp(min=0)
    damped = squares + damping * squares.mean(-1, keepdim=True)
    return torch.where(damped > 0, damped, 1), vectors
