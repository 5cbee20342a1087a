"""The `cuda` backend: `gram` with its factors made by the compiled extension, on the GPU or on all cores of a CPU.

A batch of blocks goes to one call, with one look at what became of each afterwards: a NaN or Inf, a solver that did not
converge, or a block too ill-conditioned for its Gram matrix, which method "auto" factors again by an SVD of the block.

All functions take equal blocks `[B, b, n]` of any floating dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lasertri.errors import LasertriError, NotConvergedError
from lasertri.ops import extension, gram
from lasertri.ops.blocks import BlockError, Side
from lasertri.ops.reference import svd_by_qr
from lasertri.ops.truncate import guarded_reduce

WORKSPACE_BYTES = 2 << 30  # of device memory for one batch of blocks, beside inputs and factors

# Bits of a block's status, as in csrc/block_svd.h.
NOT_FINITE, NOT_CONVERGED, UNRESOLVED = 1, 2, 4


def workspace_bytes(blocks: int, rows: int, columns: int, device: torch.device) -> int:
    """Upper bound on the FP64 bytes that factoring and scoring equal blocks takes beside their inputs."""
    batch = WORKSPACE_BYTES if device.type == "cuda" else 0
    return gram.workspace_bytes(blocks, rows, columns, device) + batch


def block_svd(
    blocks: Tensor, side: Side, method: str = "auto", *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Basis Q `[B, b, r]` ("left") or `[B, n, r]` ("right") and singular values `[B, r]`, descending.

    Raises:
        BlockError: a block with a NaN or Inf, one whose solver did not converge, or, unless the method is "direct", one
            whose squares FP64 cannot hold.
    """
    short = gram.short_first(blocks, side)
    basis, sigma, status = _factor(short, "direct" if method == "direct" else "gram", dtype)
    if method == "auto":
        again = [i for i, bits in enumerate(status) if bits & UNRESOLVED]
        if again:
            basis[again], sigma[again], _ = _factor(short[again], "direct", dtype, again)
    sigma, order = sigma.sort(descending=True, stable=True)
    return basis.gather(-1, order.unsqueeze(-2).expand_as(basis)), sigma


def score_blocks(
    blocks: Tensor, grads: Tensor, side: Side, factors: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Singular values and their gradients ∂L/∂σᵢ = qᵢᵀ (G Aᵀ) qᵢ / σᵢ, each `[B, r]`."""
    return gram.score_blocks(blocks, grads, side, factors or block_svd(blocks, side))


def reduce_blocks(
    blocks: Tensor, side: Side, ranks: Sequence[int], basis: Tensor | None = None, *, precision: str = "float64"
) -> Tensor:
    """Projections A_k = Q_k Q_kᵀ A (or A Q_k Q_kᵀ) for all ranks as running sums, `[R, B, b, n]`."""
    return guarded_reduce(blocks, side, ranks, basis, precision, block_svd, gram.project)


linear_blocks = gram.linear_blocks
lowrank_blocks = gram.lowrank_blocks
moment_root = gram.moment_root
scale_blocks = gram.scale_blocks
whiten_blocks = gram.whiten_blocks
whiten_moments = gram.whiten_moments


def _factor(
    short: Tensor, method: str, dtype: torch.dtype, names: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    """Factors of `[B, s, l]` and each block's status; a failed block is named by its number, or by one of `names`."""
    basis, sigma, status = extension.factor_blocks(short, method, dtype == torch.float64, WORKSPACE_BYTES)
    if method == "gram":
        gram.check_squares(short)
    codes: list[int] = status.tolist()  # waits for the device
    for i, bits in enumerate(codes):
        if bits & NOT_CONVERGED and method == "direct":
            try:
                basis[i], sigma[i], _ = svd_by_qr(short[i].to(dtype))
                continue
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                pass  # the error below names the block
        if bits & (NOT_FINITE | NOT_CONVERGED):
            raise BlockError(i if names is None else names[i], *_cause(bits, method))
    return basis, sigma, codes


def _cause(bits: int, method: str) -> tuple[str, str, type[LasertriError]]:
    """What a block's status says, what to do about it, and of which kind the error is."""
    if bits & NOT_FINITE:
        return "expected finite values, got NaN or Inf", "; check how it was made or loaded", LasertriError
    solver = "SVD" if method == "direct" else "eigensolver"
    return f"the {solver} did not converge", "; use backend='reference'", NotConvergedError
