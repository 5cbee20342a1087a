"""Eigenvectors of Gram matrices; of large ones by products, where a device multiplies FP64 far faster than it solves.

That is a spectral divide and conquer (Nakatsukasa and Higham, *Stable and efficient spectral divide and conquer
algorithms*, 2013): the sign of S − μ tells the vectors of larger eigenvalues from the others, each half of the space is
divided in turn, and a solver gets what is small. Every split takes about 50 n³ operations, nearly all of them in
products; the tridiagonal matrix that solvers go by takes fewer, but most of these wait for memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lasertri.ops.products import gram

SOLVED = 1024  # size up to which a solver is as fast, by the same model
BAND = 1024  # rows of a product that keep a GPU busy
FP64_TENSOR_CORES = {(8, 0), (9, 0), (10, 0)}  # compute capabilities: A100, H100 and H200, B200
LEAST = 3e-4  # distance from 0, of at most 1, up from which `_sign` takes as few products as it can
FAR = 0.999  # distance from which plain Newton-Schulz steps are as good as scaled ones
PLAIN = 40  # of these at most: an eigenvalue that is 1e-12 away needs them
SETTLED = 1e-8  # rms of X² − 1 before a last step
SEED = 2013  # of the random vectors that are projected; one that weights are hardly made from
THIN = 1e-6  # of a random vector that is left beside others: with less they are no basis


def by_products(device: torch.device) -> bool:
    """Whether large problems are divided: as the model of `benchmarks.roofline` says, no GPU has been measured yet."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in FP64_TENSOR_CORES


def eigenvectors(grams: Tensor) -> Tensor:
    """Eigenvectors of A Aᵀ `[B, n, n]`, whose lower triangle counts, as columns by ascending eigenvalue."""
    divided = grams.dtype == torch.float64 and grams.shape[-1] > SOLVED and by_products(grams.device)
    if not divided or not grams.isfinite().all():  # the solver says what is wrong
        return torch.linalg.eigh(grams).eigenvectors
    generator = torch.Generator(grams.device).manual_seed(SEED)
    noise = torch.randn(grams.shape[1:], dtype=grams.dtype, device=grams.device, generator=generator)
    vectors = torch.empty_like(grams)
    for own, out in zip(grams, vectors, strict=True):
        whole = own.tril()
        whole += own.tril(-1).mT
        rounding = torch.finfo(grams.dtype).eps * len(own) * float(own.trace())
        out.copy_(_divided(whole, rounding, noise))
    return vectors


def workspace_squares(blocks: int) -> int:
    """Upper bound on the n x n matrices that `eigenvectors` has at once, its argument and result among them."""
    return 2 * blocks + 6


def _divided(matrix: Tensor, rounding: float, noise: Tensor) -> Tensor:
    """Eigenvectors of one matrix; `rounding`: how far eigenvalues may be off, also below 0."""
    size = len(matrix)
    sign = _sign(matrix, rounding) if size > SOLVED else None
    lower = 0 if sign is None else round((size - float(sign.trace())) / 2)
    if sign is None or not 0 < lower < size:
        return torch.linalg.eigh(matrix).eigenvectors
    start = noise[:size, :size]
    image = sign @ start
    del sign
    low, high = _orthonormal(start[:, :lower] - image[:, :lower]), _orthonormal(start[:, lower:] + image[:, lower:])
    del image
    if low is None or high is None:
        return torch.linalg.eigh(matrix).eigenvectors
    parts = (basis @ _divided(_symmetric(basis.mT, matrix @ basis), rounding, noise) for basis in (low, high))
    return torch.cat(list(parts), dim=-1)


def _sign(matrix: Tensor, rounding: float) -> Tensor | None:
    """The sign of S − μ for the geometric mean μ of the eigenvalues; None where they do not fall in two by it.

    (S − μ) (S + μ)⁻¹ has the same sign, and its eigenvalues lie between −1 and 1, spread however steeply those of S
    fall. Newton-Schulz steps take them there, scaled as in `roots.inverse_root`.
    """
    size = len(matrix)
    root, failed = torch.linalg.cholesky_ex(_shifted(matrix, rounding))
    middle = 0.0 if failed else math.exp(2 * float(root.diagonal().log().mean()))
    if middle <= 4 * rounding:  # all of it is rounding
        return None
    root, failed = torch.linalg.cholesky_ex(_shifted(matrix, middle))
    if failed:
        return None
    sign = torch.cholesky_inverse(root).mul_(-2 * middle)
    del root
    sign.diagonal().add_(1)
    for square in itertools.chain(_scales(), itertools.repeat(1.0, PLAIN)):
        error = _symmetric(sign, sign)
        error.diagonal().sub_(1)
        settled = square == 1 and float(error.norm()) <= SETTLED * math.sqrt(size)
        factor = math.sqrt(square) / 2
        sign = _symmetric(sign, error).mul_(-factor * square).add_(sign, alpha=factor * (3 - square))
        if settled:
            return sign
    return None


def _scales() -> Iterator[float]:
    """ρ² of every step that takes what is at least `LEAST` away from 0 to 1."""
    least = LEAST
    while least < FAR:
        square = 3 / (1 + least + least**2)
        yield square
        least *= math.sqrt(square) / 2 * (3 - square * least**2)


def _shifted(matrix: Tensor, by: float) -> Tensor:
    shifted = matrix.clone()
    shifted.diagonal().add_(by)
    return shifted


def _symmetric(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` where that is symmetric, of the lower triangle in up to four bands of rows.

    Made symmetric to the last digit: what is not would grow from one Newton-Schulz step to the next.
    """
    size = len(left)
    out = left.new_empty(size, size)
    band = max(BAND, -(-size // 4))
    for start in range(0, size, band):
        rows = slice(start, min(start + band, size))
        torch.mm(left[rows], right[:, : rows.stop], out=out[rows, : rows.stop])
        out[:start, rows] = out[rows, :start].mT
        square = out[rows, rows]
        out[rows, rows] = (square + square.mT) / 2
    return out


def _orthonormal(block: Tensor) -> Tensor | None:
    """An orthonormal basis of projected random vectors: a Cholesky QR, and once more for what rounding left."""
    for _ in range(2):
        root, failed = torch.linalg.cholesky_ex(gram(block.mT.unsqueeze(0), compute=block.dtype)[0])
        if failed or float(root.diagonal().min()) < THIN:
            return None
        block = torch.linalg.solve_triangular(root.mT, block, upper=True, left=False)
    return block
