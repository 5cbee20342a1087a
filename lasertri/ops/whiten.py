"""The whitened gradient (B+λ)^-½ G (C+λ)^-½ at its best rank, with nothing formed that is larger than it need be.

For Δ `[T, m]` and X `[T, n]` with thin SVDs Δ = U_δ S_δ V_δᵀ and X = U_x S_x V_xᵀ, the moments are B = ΔᵀΔ and C = XᵀX,
the gradient is G = ΔᵀX, and the whitened gradient is V_δ f(S_δ) (U_δᵀ U_x) f(S_x) V_xᵀ with f(s) = s/√(s² + λ): what
lies between V_δ and V_xᵀ, the core, has its singular values. They are the canonical correlations of Δ and X, damped.
Each side comes from an eigenproblem of its shorter dimension: tokens (S² and U) or features (S² and V). A GPU, which
multiplies far faster than it solves, makes Δ' = (ΔΔᵀ + λ)^-½ Δ and X' likewise by products (or Δ (ΔᵀΔ + λ)^-½, which
is the same), and finds the best rank of Δ'ᵀX' by passes over the two. One that is as fast in FP64 makes neither for an
FP32 result, but passes over their factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lasertri.ops import eigen
from lasertri.ops.krylov import few, leading_vectors, leading_vectors_by
from lasertri.ops.products import gram, mirrored, symmetric_product
from lasertri.ops.reference import Pair
from lasertri.ops.roots import inverse_root, resolved
from lasertri.ops.units import in_own_units

BY_PRODUCTS = {"cuda"}  # devices that multiply far faster than they solve
ALIKE = 0.98  # of the squares of tokens, in one direction: of FP32's digits few are left for the others
ROOM = 28  # times a block of passes: correlations fall slowly, a real model's took up to 14 passes


def whiten_blocks(
    deltas: Sequence[Tensor], inputs: Tensor, rank: int, damping: float, *, precision: str = "float64"
) -> list[Pair]:
    """For every group of equal blocks `[S, K, T, b]` and the inputs `[S, T, n]` its best rank."""
    dtype = getattr(torch, precision)
    if inputs.device.type in BY_PRODUCTS and suit_products(deltas, inputs, rank, damping, dtype):
        pairs = whiten_by_products(deltas, inputs, rank, damping, dtype)
        if pairs is not None:
            return pairs
        if len(inputs) > 1:  # not all need be left to eigenproblems
            alone = [
                whiten_blocks(
                    [delta[i : i + 1] for delta in deltas], own.unsqueeze(0), rank, damping, precision=precision
                )
                for i, own in enumerate(inputs)
            ]
            return [_together(pairs) for pairs in zip(*alone, strict=True)]
    if dtype == torch.float32 and any(map(_point_alike, (inputs, *deltas))):
        dtype = torch.float64
    right = _Side.of_rows(inputs.unsqueeze(-3), damping, dtype)
    lefts = (_Side.of_rows(delta, damping, dtype) for delta in deltas)
    return [_best(left.tokens.mT @ right.tokens, left, right, rank) for left in lefts]


def _together(pairs: Sequence[Pair]) -> Pair:
    left, right, sigma = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return left, right, sigma


def _point_alike(rows: Tensor) -> bool:
    """Whether tokens `[…, T, s]` have nearly all of their squares in one direction, by three power iterations."""
    rows, _ = in_own_units(rows, torch.float32)
    longest = rows.norm(dim=-1, keepdim=True).argmax(dim=-2, keepdim=True)
    direction = rows.gather(-2, longest.expand(*rows.shape[:-2], 1, rows.shape[-1])).mT
    for _ in range(3):
        direction = torch.nn.functional.normalize(rows.mT @ (rows @ direction), dim=-2)
    squares = (rows @ direction).square().sum((-2, -1))
    return bool((squares > ALIKE * rows.square().sum((-2, -1))).any())


def suit_products(deltas: Sequence[Tensor], inputs: Tensor, rank: int, damping: float, dtype: torch.dtype) -> bool:
    """Whether products are better than eigenproblems of tokens or features."""
    count, width = inputs.shape[-2:]
    sizes = [width, *(delta.shape[-1] for delta in deltas)]
    return few(rank, min(count, *sizes), ROOM) and resolved(damping, max(sizes), dtype) and inputs.numel() > 0


def whiten_by_products(
    deltas: Sequence[Tensor], inputs: Tensor, rank: int, damping: float, dtype: torch.dtype
) -> list[Pair] | None:
    """What `whiten_blocks` gives, with no eigenproblem of tokens or features; None where a spectrum is flat."""
    compute = torch.float64 if eigen.by_products(inputs.device) else dtype
    right, pairs = _Whitened.of_rows(inputs.unsqueeze(-3), damping, dtype, compute), []
    for delta in deltas:
        pair = _best_of_product(_Whitened.of_rows(delta, damping, dtype, compute), right, rank)
        if pair is None:
            return None
        pairs.append(pair)
    return pairs


def whiten_moments(
    grads: Sequence[Tensor],
    outputs: Sequence[Tensor],
    inputs: Tensor,
    rank: int,
    damping: float,
    *,
    precision: str = "float64",
) -> list[Pair]:
    """The same from groups of G `[S, K, b, n]` and B `[S, K, b, b]`, and C `[S, n, n]`."""
    dtype = getattr(torch, precision)
    c, c_units = in_own_units(inputs.unsqueeze(-3), dtype)
    right, pairs = _Side.of_moment(c, damping), []
    for grad, moment in zip(grads, outputs, strict=True):
        b, b_units = in_own_units(moment, dtype)
        g, g_units = in_own_units(grad, dtype)
        left = _Side.of_moment(b, damping)
        core = left.basis.mT @ g @ right.basis * left.inverse_root.unsqueeze(-1) * right.inverse_root.unsqueeze(-2)
        core = torch.ldexp(core, 2 * g_units - b_units - c_units)
        pairs.append(_best(core, left, right, rank))
    return pairs


class _Whitened(NamedTuple):
    """A side of the whitened gradient, U f(S) Vᵀ `[…, T, s]` of its rows, made by products.

    Attributes:
        factors: whose product it is: itself alone, or the inverse root `[…, T, T]` and the rows.
        gram: the side times its transpose `[…, T, T]`, where tokens are its shorter dimension.
    """

    factors: tuple[Tensor, ...]
    gram: Tensor | None

    @classmethod
    def of_rows(cls, rows: Tensor, damping: float, dtype: torch.dtype, compute: torch.dtype) -> _Whitened:
        """The side of rows `[…, T, s]`, whose scale does not matter, to the digits of `dtype`."""
        rows, _ = in_own_units(rows, compute)
        count, size = rows.shape[-2:]
        if size < count:
            return cls((rows @ inverse_root(_gram(rows.mT), damping, size, dtype),), None)
        gram = mirrored(_gram(rows))
        root = inverse_root(gram, damping, size, dtype)
        if compute != dtype:  # with digits to spare the side need not be made
            return cls((root, rows), symmetric_product(root, symmetric_product(root, gram)))
        whitened = root @ rows
        return cls((whitened,), mirrored(_gram(whitened)))

    @property
    def size(self) -> int:
        return self.factors[-1].shape[-1]

    def inward(self, block: Tensor) -> Tensor:
        """The side times a block `[…, s, k]`."""
        for factor in reversed(self.factors):
            block = factor @ block
        return block

    def outward(self, block: Tensor) -> Tensor:
        """Its transpose times a block `[…, T, k]`."""
        for factor in self.factors:
            block = factor.mT @ block
        return block

    def over(self, block: Tensor) -> Tensor:
        """`gram` times a block `[…, T, k]`; that of a side which was made has fewer digits than the side."""
        if self.gram is None or len(self.factors) == 1:
            return self.inward(self.outward(block))
        return self.gram @ block


def _best_of_product(left: _Whitened, right: _Whitened, rank: int) -> Pair | None:
    """Best rank of Lᵀ R; None where its spectrum is flat."""
    if left.size > right.size:
        turned = _best_of_product(right, left, rank)
        return None if turned is None else (turned[1].mT, turned[0].mT, turned[2])
    dtype, count = left.factors[0].dtype, left.factors[0].shape[-2]
    if left.gram is None or right.gram is None:  # many tokens: Lᵀ R is smaller than what is T x T
        left, right = _Whitened((), None), _Whitened((right.outward(left.factors[0]).mT,), None)
        basis = leading_vectors(right.factors[0], rank, dtype)
    else:

        def pass_over(block: Tensor) -> Tensor:
            """Lᵀ R Rᵀ L times a block `[…, b, k]`."""
            return left.outward(right.over(left.inward(block.to(dtype)))).double()

        squares = (left.gram * right.gram).sum((-2, -1), dtype=torch.float64)
        basis = leading_vectors_by(pass_over, squares, left.size, rank, most=count // 2)
    if basis is None:
        return None
    basis = basis.to(dtype)
    across = right.outward(left.inward(basis))
    return _pair(basis, across, across.norm(dim=-2), min(count, basis.shape[-2]))


class _Side(NamedTuple):
    """One side of the core: V (or what it is made of), and for rows of tokens U f(S).

    Attributes:
        inverse_root: 1/√(s² + λ) `[…, p]`.
        tokens: U f(S) `[…, T, p]`; of a moment alone it means nothing.
        basis: V `[…, s, p]` where features are the shorter dimension, U S⁻¹ `[…, T, p]` where tokens are.
        rows: the rows `[…, T, s]` that make V of the latter, else None.
    """

    inverse_root: Tensor
    tokens: Tensor
    basis: Tensor
    rows: Tensor | None

    @classmethod
    def of_rows(cls, rows: Tensor, damping: float, dtype: torch.dtype) -> _Side:
        """The side of rows `[…, T, s]`, whose scale does not matter."""
        rows, _ = in_own_units(rows, dtype)
        count, size = rows.shape[-2:]
        if size <= count:
            side = cls.of_moment(_gram(rows.mT), damping)
            return side._replace(tokens=rows @ side.basis * side.inverse_root.unsqueeze(-2))
        squares, u = torch.linalg.eigh(_gram(rows))
        s, inverse_root = _roots(squares, damping, size)
        return cls(inverse_root, u * (s * inverse_root).unsqueeze(-2), u / s.unsqueeze(-2), rows)

    @classmethod
    def of_moment(cls, moment: Tensor, damping: float) -> _Side:
        """The side of a moment `[…, s, s]`."""
        squares, v = torch.linalg.eigh(moment)
        _, inverse_root = _roots(squares, damping, moment.shape[-1])
        return cls(inverse_root, v, v, None)

    def lift(self, coordinates: Tensor) -> Tensor:
        """V times coordinates `[…, p, k]`."""
        vectors = self.basis @ coordinates
        return vectors if self.rows is None else self.rows.mT @ vectors


def _gram(matrix: Tensor) -> Tensor:
    """A Aᵀ of `[…, p, q]`, its lower triangle at least: `eigh` reads no more."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    return gram(flat, compute=matrix.dtype).reshape(*matrix.shape[:-1], matrix.shape[-2])


def _roots(squares: Tensor, damping: float, size: int) -> tuple[Tensor, Tensor]:
    """S and 1/√(S² + λ) of ascending eigenvalues S² `[…, p]`, λ = damping · Σ S² / size; 1 and 0 where all are zero.

    Eigenvalues are known to eps of the largest, and at least that here: V, made of rows over S, is never longer than 1.
    """
    largest = squares[..., -1:]
    squares = squares.clamp(min=torch.finfo(squares.dtype).eps * largest)
    damped = squares + damping * squares.sum(-1, keepdim=True) / size
    return torch.where(largest > 0, squares, 1).sqrt(), torch.where(largest > 0, damped.rsqrt(), 0)


def _best(core: Tensor, left: _Side, right: _Side, rank: int) -> Pair:
    """Best rank of V_δ core V_xᵀ, by an eigenproblem of the core's short side; it is multiplied out in factors."""
    if core.shape[-2] > core.shape[-1]:
        v, u, sigma = _best(core.mT, right, left, rank)
        return u.mT, v.mT, sigma
    rank = min(rank, core.shape[-2])
    u = torch.linalg.eigh(_gram(core)).eigenvectors.flip(-1)[..., :rank]
    across = core.mT @ u
    return _pair(left.lift(u), right.lift(across), across.norm(dim=-2), core.shape[-2])


def _pair(left: Tensor, across: Tensor, sigma: Tensor, size: int) -> Pair:
    """Of singular vectors `[…, b, k]`, σ times those of the other side `[…, n, k]`, and σ, which is that one's norm.

    A norm is accurate where an eigenvalue is not.
    """
    sigma, order = sigma.sort(descending=True, stable=True)
    left, across = (side.gather(-1, order.unsqueeze(-2).expand_as(side)) for side in (left, across))
    floor = size * torch.finfo(across.dtype).eps * sigma[..., :1]
    sigma = torch.where(sigma > floor, sigma, 0)
    root = sigma.sqrt().unsqueeze(-2)
    return left * root, (across * torch.where(root > 0, 1 / root, 0)).mT, sigma
