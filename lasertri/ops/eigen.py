"""Eigenvectors of Gram matrices; of large ones by products, where a device multiplies FP64 far faster than it solves.

That is a spectral divide and conquer (Nakatsukasa and Higham, *Stable and efficient spectral divide and conquer
algorithms*, 2013): the sign of S − μ tells the vectors of larger eigenvalues from the others, each half of the space is
divided in turn, and a solver gets what is small. Every split takes about 50 n³ operations, nearly all of them in
products; the tridiagonal matrix that solvers go by takes fewer, but most of these wait for memory.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lasertri.ops.finite import all_finite
from lasertri.ops.products import gram, mirrored, symmetric_product
from lasertri.ops.roots import scales

SOLVED = 1024  # size up to which a solver is as fast, by the model of benchmarks.roofline
FAST_FP64 = {(8, 0), (9, 0), (10, 0)}  # compute capabilities of A100, of H100 and H200, of B200
LEAST = 3e-4  # distance from 0, of at most 1, up from which `_sign` takes as few products as it can
FAR = 0.999  # distance from which plain Newton-Schulz steps are as good as scaled ones
PLAIN = 40  # of these at most: an eigenvalue that is 1e-12 away needs them
SETTLED = 1e-8  # rms of X² − 1 before a last step
SEED = 2013  # of the random vectors that are projected; one that weights are hardly made from


def by_products(device: torch.device) -> bool:
    """Whether large problems are divided; by that model, too: no GPU has been measured yet."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in FAST_FP64


def eigenvectors(grams: Tensor) -> Tensor:
    """Eigenvectors of A Aᵀ `[B, n, n]`, whose lower triangle counts, as columns by ascending eigenvalue."""
    if grams.dtype != torch.float64 or not divides(grams.shape[-1], grams.device):
        return torch.linalg.eigh(grams).eigenvectors
    generator = torch.Generator(grams.device).manual_seed(SEED)
    noise = torch.randn(grams.shape[1:], dtype=grams.dtype, device=grams.device, generator=generator)
    vectors = torch.empty_like(grams)
    for own, out in zip(grams, vectors, strict=True):
        pending = [(0, mirrored(own))]  # where a matrix's vectors begin, and the matrix
        rounding = torch.finfo(grams.dtype).eps * len(own) * float(own.trace())
        if not math.isfinite(rounding) or not all_finite(pending[0][1]):
            return torch.linalg.eigh(grams).eigenvectors  # it says what is wrong
        while pending:
            start, matrix = pending.pop()
            halves = _halves(matrix, rounding, noise) if len(matrix) > SOLVED else None
            if halves is None:
                _turn(out, start, torch.linalg.eigh(matrix).eigenvectors)
            else:
                lower = halves[0].shape[-1]
                for first, basis in zip((start, start + lower), halves, strict=True):
                    pending.append((first, symmetric_product(basis.mT, matrix @ basis)))
                del matrix, basis
                _turn(out, start, torch.cat(halves, dim=-1))
    return vectors


def divides(size: int, device: torch.device) -> bool:
    """Whether `eigenvectors` divides FP64 matrices of this size."""
    return size > SOLVED and by_products(device)


def workspace_squares(blocks: int) -> int:
    """Upper bound on the n x n matrices that it has at once where it divides, its argument and result among them."""
    return 2 * blocks + 8


def _turn(vectors: Tensor, start: int, basis: Tensor) -> None:
    """Vectors of a part of the space, from `start` on, become what a basis within that part is made of."""
    columns = slice(start, start + len(basis))
    vectors[:, columns] = basis if len(basis) == len(vectors) else vectors[:, columns] @ basis


def _halves(matrix: Tensor, rounding: float, noise: Tensor) -> tuple[Tensor, Tensor] | None:
    """Bases of the spaces of the smaller and of the larger eigenvalues; None where they do not fall in two.

    Args:
        rounding: how far eigenvalues may be off, also below 0.
        noise: random vectors, as many and as long as needed.
    """
    size, sign = len(matrix), _sign(matrix, rounding)
    lower = 0 if sign is None else round((size - float(sign.trace())) / 2)
    if sign is None or not 0 < lower < size:
        return None
    low = _projected(sign, -1, noise[:size, :lower])
    high = None if low is None else _projected(sign, 1, noise[:size, lower:size])
    return None if low is None or high is None else (low, high)


def _projected(sign: Tensor, side: int, block: Tensor) -> Tensor | None:
    """An orthonormal basis of what (1 ± sign) leaves of random vectors; None where they are no basis of that space.

    By a Cholesky QR, and once more with the projection, since rounding grows with the condition of what is left.
    """
    for least in (0.0, 1.0):  # of the projection of a unit vector within the space, which is 2 with this sum
        block = torch.addmm(block, sign, block, alpha=side)
        root, failed = torch.linalg.cholesky_ex(gram(block.mT.unsqueeze(0), compute=block.dtype)[0])
        if failed or float(root.diagonal().min()) < least:
            return None
        block = torch.linalg.solve_triangular(root.mT, block, upper=True, left=False)
    return block


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
    for square in itertools.chain(scales(LEAST, FAR), itertools.repeat(1.0, PLAIN)):
        error = symmetric_product(sign, sign)
        error.diagonal().sub_(1)
        settled = square == 1 and float(error.norm()) <= SETTLED * math.sqrt(size)
        factor = math.sqrt(square) / 2
        sign = symmetric_product(sign, error).mul_(-factor * square).add_(sign, alpha=factor * (3 - square))
        if settled:
            return sign
    return None


def _shifted(matrix: Tensor, by: float) -> Tensor:
    shifted = matrix.clone()
    shifted.diagonal().add_(by)
    return shifted
