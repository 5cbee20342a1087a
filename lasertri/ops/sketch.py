"""Many tokens as few: rows that stand for a layer's inputs and output gradients together.

Of Z = [X/‖X‖, Δ/‖Δ‖] `[T, n + m]` the Gram matrix ZᵀZ holds G = ΔᵀX, B = ΔᵀΔ and C = XᵀX. Where there are more than
n + m tokens, R of Z = QR has the same. Of what are still too many rows the best rank s is kept, S Vᵀ with R = U S Vᵀ,
which loses no more than the smallest singular values hold. Pieces of a longer Z may be compressed one
after the other, as in the incremental SVD that frequent directions bound (Ghashami, Liberty, Phillips and Woodruff,
2016).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lasertri.errors import LasertriError
from lasertri.ops.arguments import check_dense, check_whole
from lasertri.ops.converging import solvers_named
from lasertri.ops.eigen import eigenvectors, workspace_squares
from lasertri.ops.finite import check_finite
from lasertri.ops.products import gram
from lasertri.ops.reference import svd_by_qr


def compress_tokens(inputs: Tensor, deltas: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most so many rows with about the same second moments.

    Args:
        inputs: X `[T, n]`, any floating dtype.
        deltas: Δ `[T, m]`, of the same tokens.
        most: rows kept, at least 1; fewer tokens stay as they are.

    Returns:
        X' `[s, n]` and Δ' `[s, m]`, s = min(most, n + m), in the two's dtypes, but FP32 for FP16; not tokens.

    Raises:
        LasertriError: the two have different numbers of rows, `most` is below 1, or a NaN or Inf in what is compressed.
        NotConvergedError: neither an eigensolver nor an SVD converges on them.

    Example:
        >>> inputs, deltas = compress_tokens(torch.randn(50, 6), torch.randn(50, 4), most=10)
        >>> inputs.shape, deltas.shape
        (torch.Size([10, 6]), torch.Size([10, 4]))
    """
    check_whole("most", most, 1)
    for name, side in (("inputs", inputs), ("deltas", deltas)):
        check_dense(name, side)
        if side.dim() != 2:
            raise LasertriError(f"expected {name} [tokens, size], got {list(side.shape)}; flatten what is in front")
    if len(inputs) != len(deltas) or inputs.device != deltas.device:
        raise LasertriError(
            f"expected the same tokens twice on one device, got {len(inputs)} on {inputs.device} and {len(deltas)} on "
            f"{deltas.device}"
        )
    if len(inputs) <= most:
        return inputs, deltas
    check_finite("inputs", inputs)
    check_finite("deltas", deltas)
    wide = torch.promote_types(torch.promote_types(inputs.dtype, deltas.dtype), torch.float32)
    sides = [side.to(wide) for side in (inputs, deltas)]
    norms = [side.norm() for side in sides]
    rows = torch.cat([side / norm if norm > 0 else side for side, norm in zip(sides, norms, strict=True)], dim=1)
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    if len(rows) > most:
        rows = rows.double()
        rows = _left_vectors(rows, most).mT @ rows  # S Vᵀ of the largest
    first, second = rows.split([inputs.shape[1], deltas.shape[1]], dim=1)
    # a row is as long as many tokens together, which FP16 may not hold
    dtypes = (torch.float32 if side.dtype == torch.float16 else side.dtype for side in (inputs, deltas))
    one, other = ((part * norm).to(dtype) for part, norm, dtype in zip((first, second), norms, dtypes, strict=True))
    return one, other


def _left_vectors(rows: Tensor, most: int) -> Tensor:
    """Of the largest singular values: by the Gram matrix's eigenvectors, where these do not converge by an SVD.

    A GPU divides that eigenproblem by products only where this takes no more memory than the rows: there may be little.
    """
    squares = gram(rows.unsqueeze(0), compute=rows.dtype)
    small = workspace_squares(1) * len(rows) <= rows.shape[1]
    try:
        vectors = eigenvectors(squares) if small else torch.linalg.eigh(squares).eigenvectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        with solvers_named():
            return svd_by_qr(rows)[0][:, :most]
    return vectors[0, :, -most:]
