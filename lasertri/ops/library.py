"""The ops as PyTorch sees them: `torch.library` schemas, fakes, and one body that serves every backend.

A body checks values, splits the rows into batches of equal blocks, and calls the backend's module on each; "auto" is
decided here, when it runs. The public wrappers in `functional.py` check shapes and options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from lasertri.errors import LasertriError
from lasertri.ops.backends import choose_backend
from lasertri.ops.blocks import BlockError, Side, equal_blocks, gather, heights, lengths, neighbours, side_of
from lasertri.ops.converging import solvers_named
from lasertri.ops.finite import all_finite, check_finite
from lasertri.ops.full_fp32 import full_fp32
from lasertri.ops.namespace import NAMESPACE
from lasertri.ops.products import mirrored

P = ParamSpec("P")
R = TypeVar("R")
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # the ops are there for as long as it is


def _op(fake: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make an op of a body, under the body's own name; `fake` gives empty results of the shapes that it returns.

    `torch.library.custom_op` would do, but imports the compiler at the first call: a second for nothing in eager code.
    """

    def registered(body: Callable[P, R]) -> Callable[P, R]:
        name = body.__name__
        schema = torch.library.infer_schema(body, mutates_args=(), op_name=name)
        LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
        LIBRARY.impl(name, torch.no_grad()(solvers_named()(body)), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return registered


@_op(lambda weight, offsets, order, backend, method, inputs=None, *_: _empty_factors(weight, offsets, inputs))
def block_svd(
    weight: Tensor,
    offsets: Sequence[int],
    order: Tensor | None,
    backend: str,
    method: str,
    inputs: Tensor | None = None,
    damping: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`[…, m, n]` -> basis `[…, K, s, r]` and σ `[…, K, r]`, FP64; of A (C + λ)^½ where C `[…, n, n]` is given."""
    basis, sigma = _empty_factors(weight, offsets, inputs)
    chosen = choose_backend(backend, weight.device, method)
    side, matrix = side_of(offsets, weight.shape[-1]), _rows(weight, order, "weight", checked=not chosen.checks_values)
    root = None if inputs is None else _root(inputs, damping, chosen.module.moment_root)
    for members in equal_blocks(offsets):
        blocks = gather(matrix, offsets, members)
        with _blocks_named(members), full_fp32(weight.device):
            if root is None:
                q, s = chosen.module.block_svd(_flat(blocks), side, method)
            else:
                whitened = _flat(blocks.double() @ root)
                q, s = chosen.module.block_svd(whitened, side, method)
                if side == "right":  # A (C + λ)^½ V = U Σ, and orthonormal where σ is small too
                    q = torch.linalg.qr(whitened @ q).Q
        _scatter(basis, members, q, (-2, -1))
        _scatter(sigma, members, s, (-1,))
    _check_held([weight, inputs], sigma)
    return basis, sigma


@_op(lambda weight, grad, basis, sigma, offsets, *_: (_empty_scores(weight, offsets), _empty_scores(weight, offsets)))
def score_blocks(
    weight: Tensor,
    grad: Tensor,
    basis: Tensor | None,
    sigma: Tensor | None,
    offsets: Sequence[int],
    order: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """`[…, m, n]` twice -> σ and ∂L/∂σ, each `[…, K, r]`, FP64; the factors are used where given."""
    out_sigma, out_grad = _empty_scores(weight, offsets), _empty_scores(weight, offsets)
    chosen, side = choose_backend(backend, weight.device), side_of(offsets, weight.shape[-1])
    matrix, gradient = _rows(weight, order, "weight"), _rows(grad, order, "grad")
    for members in equal_blocks(offsets):
        factors = None
        if basis is not None and sigma is not None:
            q = _basis_of(basis, offsets, members, weight.shape[-1])
            known = sigma[..., neighbours(members), : q.shape[-1]]
            factors = q.double(), known.reshape(-1, q.shape[-1]).double()
        with _blocks_named(members), full_fp32(weight.device):
            s, g = chosen.module.score_blocks(
                _flat(gather(matrix, offsets, members)), _flat(gather(gradient, offsets, members)), side, factors
            )
        _scatter(out_sigma, members, s, (-1,))
        _scatter(out_grad, members, g, (-1,))
    _check_held([weight, grad], out_sigma, out_grad)
    return out_sigma, out_grad


@_op(lambda weight, basis, ranks, offsets, *_: _empty_stack(weight, ranks, offsets))
def reduce_blocks(
    weight: Tensor,
    basis: Tensor | None,
    ranks: Sequence[int],
    offsets: Sequence[int],
    order: Tensor | None,
    backend: str,
    precision: str,
) -> Tensor:
    """`[…, m, n]` and the rank of every block, R·K of them -> `[R, …, m, n]` in the weight's dtype."""
    columns, per_block = weight.shape[-1], _ranks_of_blocks(ranks, offsets)
    side, matrix = _side_of_basis(basis, offsets, columns), _rows(weight, order, "weight")
    chosen = choose_backend(backend, weight.device)

    def reduced(members: Sequence[int]) -> Tensor:
        q = None if basis is None else _basis_of(basis, offsets, members, columns)
        with _blocks_named(members), full_fp32(weight.device):
            stack = chosen.module.reduce_blocks(
                _flat(gather(matrix, offsets, members)), side, per_block[members[0]], q, precision=precision
            )
        _check_held([weight], stack, precision=precision)
        return stack.reshape(len(stack), *weight.shape[:-2], len(members), *stack.shape[-2:])

    groups = list(equal_blocks(offsets, per_block))
    if order is None and len(groups) == 1:
        return reduced(groups[0]).flatten(-3, -2)  # the rows lie as they should: nothing is copied
    stack = _empty_stack(weight, ranks, offsets)
    for members in groups:
        for j, block in zip(members, reduced(members).unbind(-3), strict=True):
            rows = slice(offsets[j], offsets[j + 1])
            stack[..., rows if order is None else order[rows], :] = block
    return stack


@_op(lambda weight, *_: weight.new_empty(weight.shape))
def scale_blocks(
    weight: Tensor,
    scales: Tensor,
    basis: Tensor,
    offsets: Sequence[int],
    order: Tensor | None,
    backend: str,
    precision: str,
) -> Tensor:
    """`[…, m, n]` and scales `[…, K, r]` -> `[…, m, n]` in the weight's dtype."""
    chosen, side = choose_backend(backend, weight.device), side_of(offsets, weight.shape[-1])
    matrix, _ = _rows(weight, order, "weight"), _rows(scales, None, "scales")
    out = weight.new_empty(weight.shape)
    for members in equal_blocks(offsets):
        q = _basis_of(basis, offsets, members, weight.shape[-1])
        s = scales[..., neighbours(members), : q.shape[-1]].reshape(-1, q.shape[-1])
        with full_fp32(weight.device):
            scaled = chosen.module.scale_blocks(
                _flat(gather(matrix, offsets, members)), s, side, q, precision=precision
            )
        scaled = scaled.reshape(*weight.shape[:-2], len(members), *scaled.shape[-2:])
        for j, block in zip(members, scaled.unbind(-3), strict=True):
            rows = slice(offsets[j], offsets[j + 1])
            out[..., rows if order is None else order[rows], :] = block
    _check_held([weight, scales], out, precision=precision)
    return out


@_op(lambda x, weight, bias, projected, basis, ranks, offsets, *_: _empty_outputs(x, weight, ranks, offsets))
def linear_blocks(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    projected: Tensor | None,
    basis: Tensor,
    ranks: Sequence[int],
    offsets: Sequence[int],
    order: Tensor | None,
    backend: str,
) -> Tensor:
    """x `[T, n]`, weight `[m, n]`, bias `[m]`, projected `[m, r]` -> `[R, T, m]`."""
    columns, per_block = weight.shape[-1], _ranks_of_blocks(ranks, offsets)
    chosen, side = choose_backend(backend, x.device), _side_of_basis(basis, offsets, columns)
    places = torch.arange(offsets[-1], device=x.device) if order is None else order
    matrix = weight if order is None else weight[order]

    def outputs(members: Sequence[int], rows: Tensor) -> Tensor:
        added = None if bias is None else bias[rows].unflatten(-1, (len(members), -1))
        q = _basis_of(basis, offsets, members, columns)
        aq = None if projected is None else projected[rows, : q.shape[-1]].unflatten(0, (len(members), -1))
        with full_fp32(x.device):
            stack = chosen.module.linear_blocks(
                x, gather(matrix, offsets, members), side, per_block[members[0]], q, aq, added
            )
        return stack.flatten(-2)

    groups = list(equal_blocks(offsets, per_block))
    if order is None and len(groups) == 1:
        return outputs(groups[0], places)
    stack = _empty_outputs(x, weight, ranks, offsets)
    for members in groups:
        rows = torch.cat([places[offsets[j] : offsets[j + 1]] for j in members])
        stack[..., rows] = outputs(members, rows)
    return stack


@_op(lambda weight, rank, offsets, *_: _empty_low_rank(weight, weight, rank, offsets))
def lowrank_blocks(
    weight: Tensor, rank: int, offsets: Sequence[int], order: Tensor | None, backend: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`[…, m, n]` -> left `[…, m, r]`, right `[…, K, r, n]` and σ `[…, K, r]`."""
    chosen, rows = choose_backend(backend, weight.device), _rows(weight, order, "weight")
    groups, pairs = list(equal_blocks(offsets)), []
    for members in groups:
        with full_fp32(weight.device):
            pair = chosen.module.lowrank_blocks(_flat(gather(rows, offsets, members)), rank, precision=precision)
        _check_held([weight], *pair, precision=precision)
        pairs.append(tuple(part.unflatten(0, (-1, len(members))) for part in pair))
    return _placed(_empty_low_rank(rows, rows, rank, offsets), groups, pairs, offsets, order)


@_op(lambda deltas, inputs, rank, offsets, *_: _empty_low_rank(deltas.mT, inputs, rank, offsets))
def whiten_blocks(
    deltas: Tensor,
    inputs: Tensor,
    rank: int,
    offsets: Sequence[int],
    order: Tensor | None,
    damping: float,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Δ `[…, T, m]` and X `[…, T, n]` -> left `[…, m, r]`, right `[…, K, r, n]` and σ `[…, K, r]`."""
    chosen, rows = choose_backend(backend, deltas.device), _rows(deltas.mT, order, "deltas")
    x, groups = _flat(_rows(inputs, None, "inputs")), list(equal_blocks(offsets))
    batches = [_stacked(gather(rows, offsets, members), len(x)).mT for members in groups]
    with full_fp32(deltas.device):
        pairs = chosen.module.whiten_blocks(batches, x, rank, damping, precision=precision)
    return _placed(_empty_low_rank(rows, inputs, rank, offsets), groups, pairs, offsets, order)


@_op(lambda grad, outputs, inputs, rank, offsets, *_: _empty_low_rank(grad, inputs, rank, offsets))
def whiten_moments(
    grad: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    rank: int,
    offsets: Sequence[int],
    order: Tensor | None,
    damping: float,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """G `[…, m, n]`, B `[…, m, m]` and C `[…, n, n]` -> left `[…, m, r]`, right `[…, K, r, n]` and σ `[…, K, r]`."""
    chosen, groups = choose_backend(backend, grad.device), list(equal_blocks(offsets))
    rows, c = _rows(grad, order, "grad"), _flat(_moment(inputs, "inputs"))
    square = _moment(outputs, "outputs")
    if order is not None:  # rows of the lower triangle, which alone is read, come to lie above it
        square = mirrored(square)[..., order, :][..., order]
    grads = [_stacked(gather(rows, offsets, members), len(c)) for members in groups]
    moments = [
        _stacked(torch.stack([square[..., b, b] for b in _slices(offsets, members)], dim=-3), len(c))
        for members in groups
    ]
    with full_fp32(grad.device):
        pairs = chosen.module.whiten_moments(grads, moments, c, rank, damping, precision=precision)
    return _placed(_empty_low_rank(rows, inputs, rank, offsets), groups, pairs, offsets, order)


def _check_held(given: Sequence[Tensor | None], *results: Tensor, precision: str = "float64") -> None:
    """Raise where values in FP64 are so large that their results are beyond it; those in narrower types fit."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in given)
    if wide and not all(map(all_finite, results)):
        raise LasertriError(
            f"expected values whose results torch.{precision} can hold, got larger ones; scale them"
            f"{'' if precision == 'float64' else ', or leave precision at float64'}"
        )


def _root(inputs: Tensor, damping: float, moment_root: Callable[[Tensor, float], Tensor]) -> Tensor:
    """R `[…, 1, n, n]` with R Rᵀ = C + λ."""
    return moment_root(_moment(inputs, "inputs").double(), damping).unsqueeze(-3)


def _moment(moment: Tensor, name: str) -> Tensor:
    """The same, once it is known to be finite, and the squares on its diagonal not to be negative."""
    check_finite(name, moment)
    if (moment.diagonal(dim1=-2, dim2=-1) < 0).any():
        raise LasertriError(f"expected a second moment XᵀX as `{name}`, got negative squares on its diagonal")
    return moment


def _empty_factors(weight: Tensor, offsets: Sequence[int], inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    sigma = _empty_scores(weight, offsets)
    columns = weight.shape[-1]
    short = max(heights(offsets)) if side_of(offsets, columns, inputs is not None) == "left" else columns
    return sigma.new_zeros(*sigma.shape[:-1], short, sigma.shape[-1]), sigma


def _empty_scores(weight: Tensor, offsets: Sequence[int]) -> Tensor:
    shape = *weight.shape[:-2], len(offsets) - 1, max(lengths(offsets, weight.shape[-1]))
    return weight.new_zeros(shape, dtype=torch.float64)


def _empty_stack(weight: Tensor, ranks: Sequence[int], offsets: Sequence[int]) -> Tensor:
    return weight.new_empty(len(ranks) // (len(offsets) - 1), *weight.shape)


def _empty_low_rank(rows: Tensor, columns: Tensor, rank: int, offsets: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for `[…, m, _]` and `[…, _, n]`."""
    dtype = torch.promote_types(torch.promote_types(rows.dtype, columns.dtype), torch.float32)
    lead, blocks = rows.shape[:-2], len(offsets) - 1
    return (
        rows.new_zeros(*lead, rows.shape[-2], rank, dtype=dtype),
        rows.new_zeros(*lead, blocks, rank, columns.shape[-1], dtype=dtype),
        rows.new_zeros(*lead, blocks, rank, dtype=torch.float64),
    )


def _empty_outputs(x: Tensor, weight: Tensor, ranks: Sequence[int], offsets: Sequence[int]) -> Tensor:
    return x.new_empty(len(ranks) // (len(offsets) - 1), x.shape[0], weight.shape[0])


def _ranks_of_blocks(ranks: Sequence[int], offsets: Sequence[int]) -> list[tuple[int, ...]]:
    """The ranks asked of every block, `[K][R]`."""
    blocks = len(offsets) - 1
    return [tuple(ranks[j::blocks]) for j in range(blocks)]


def _rows(matrix: Tensor, order: Tensor | None, name: str, *, checked: bool = True) -> Tensor:
    """The rows in the partition's order, once every value is known to be finite."""
    if checked:
        check_finite(name, matrix)
    return matrix if order is None else matrix[..., order, :]


@contextmanager
def _blocks_named(members: Sequence[int]) -> Iterator[None]:
    """Say which block of the weight it is that a batch of these blocks failed on."""
    try:
        yield
    except BlockError as error:
        matrix, place = divmod(error.index, len(members))
        where = f"block {members[place]} of `weight` (matrix {matrix})"
        raise error.kind(f"{error.cause} in {where}{error.advice}") from error


def _basis_of(basis: Tensor, offsets: Sequence[int], members: Sequence[int], columns: int) -> Tensor:
    """The bases of equal blocks without padding, `[B, s, r]`."""
    height = heights(offsets)[members[0]]
    short = height if _side_of_basis(basis, offsets, columns) == "left" else columns
    return _flat(basis[..., neighbours(members), :short, : min(height, columns)])


def _side_of_basis(basis: Tensor | None, offsets: Sequence[int], columns: int) -> Side:
    """The side of factors, whitened or not: a basis on the longer side has the tallest block's rows."""
    return side_of(offsets, columns, basis is not None and basis.shape[-2] == max(heights(offsets)))


def _stacked(blocks: Tensor, matrices: int) -> Tensor:
    """`[…, K, b, n]` -> `[S, K, b, n]`."""
    return blocks.reshape(matrices, *blocks.shape[-3:])


def _slices(offsets: Sequence[int], members: Sequence[int]) -> list[slice]:
    return [slice(offsets[j], offsets[j + 1]) for j in members]


def _placed(
    out: tuple[Tensor, Tensor, Tensor],
    groups: Sequence[Sequence[int]],
    pairs: Sequence[tuple[Tensor, Tensor, Tensor]],
    offsets: Sequence[int],
    order: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write left `[S, K, b, k]`, right `[S, K, k, n]` and σ `[S, K, k]` of groups of equal blocks into their places."""
    left, right, sigma = out
    for members, pair in zip(groups, pairs, strict=True):
        k = pair[2].shape[-1]
        for i, (j, block) in enumerate(zip(members, _slices(offsets, members), strict=True)):
            u, vh, s = (part[:, i].reshape(*left.shape[:-2], *part.shape[2:]) for part in pair)
            left[..., block if order is None else order[block], :k] = u.to(left.dtype)
            right[..., j, :k, :] = vh
            sigma[..., j, :k] = s
    return out


def _flat(blocks: Tensor) -> Tensor:
    """`[…, K, b, n]` -> `[B, b, n]`."""
    return blocks.reshape(-1, *blocks.shape[-2:])


def _scatter(out: Tensor, members: Sequence[int], values: Tensor, dims: tuple[int, ...]) -> None:
    """Write the results of equal blocks into their places of the padded output."""
    values = values.reshape(*out.shape[: -len(dims) - 1], len(members), *values.shape[1:])
    for i, j in enumerate(members):
        place = out.select(-len(dims) - 1, j)
        for dim in dims:
            place = place.narrow(dim, 0, values.shape[dim])
        place.copy_(values.select(-len(dims) - 1, i))
