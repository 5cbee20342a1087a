"""The public ops: check shapes and options, then call the registered op. None is differentiable."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from lasertri.errors import LasertriError, shown
from lasertri.ops import library
from lasertri.ops.arguments import DTYPES, check_dense, check_matrices, check_name, is_number, is_whole
from lasertri.ops.backends import METHODS, choose_backend
from lasertri.ops.blocks import BlockFactors, BlockScores, LowRank, Partition, block_ranks, lengths
from lasertri.ops.full_fp32 import full_fp32

WIDE = (torch.float32, torch.float64)  # what factors and projections are in
PRECISIONS = ("float64", "float32")


def block_svd(
    weight: Tensor,
    *,
    blocks: int | Partition = 1,
    inputs: Tensor | None = None,
    damping: float = 0.01,
    backend: str = "auto",
    method: str = "auto",
) -> BlockFactors:
    """Factor every block of rows of a matrix, short side only.

    Args:
        weight: `[…, m, n]`, rows = output features; fp32, fp64, bf16 or fp16, any strides, CPU or CUDA. Leading
            dimensions are a stack of equal matrices. It is detached: the op is not differentiable.
        blocks: number K of consecutive blocks, or a `Partition` of the rows.
        inputs: C = XᵀX, the second moment of the layer's inputs X `[T, n]`, as `[n, n]` for all matrices or `[…, n, n]`
            for each; its lower triangle is read. Truncating by the factors is then best for these inputs: of all
            matrices of rank k, A_k = U_k U_kᵀ A has the least ‖(A − A_k) (C + λ)^½‖, the error of the outputs, U being
            the left singular vectors of A (C + λ)^½.
        damping: λ as a share of C's mean eigenvalue.
        backend: "auto", "reference", "gram", "triton" or "cuda".
        method: "gram", an eigenproblem of the short side; "direct", an SVD of the block itself, slower, for a condition
            number above 1e4; "auto", which is the first, but where `cuda` finds that a block is too ill-conditioned
            for it (its σ² and the eigenvalues disagree) the second.

    Returns:
        `BlockFactors` in FP64, to be passed as `factors` to the other ops; with `inputs` to `reduce_blocks` and
        `linear_blocks` alone.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, a NaN or Inf in the weight or the inputs, or values
            too large for FP64 to hold what comes out.
    """
    weight, partition = _checked(weight, blocks, backend, method=method)
    options = partition.offsets, _order(partition, weight), backend, method
    if inputs is None:
        return BlockFactors(*library.block_svd(weight, *options), partition, weight.shape[-1])
    check_matrices(inputs=inputs)
    _check_damping(damping)
    columns = weight.shape[-1]
    shapes = [(columns, columns), (*weight.shape[:-2], columns, columns)]
    if inputs.shape not in shapes or inputs.device != weight.device:
        raise LasertriError(
            f"expected inputs {' or '.join(str(list(s)) for s in dict.fromkeys(shapes))} on {weight.device}, the "
            f"second moment XᵀX of what the layer is given, got {list(inputs.shape)} on {inputs.device}"
        )
    basis, sigma = library.block_svd(weight, *options, inputs.detach(), float(damping))
    return BlockFactors(basis, sigma, partition, columns, whitened=True)


def score_blocks(
    weight: Tensor,
    grad: Tensor,
    *,
    blocks: int | Partition = 1,
    factors: BlockFactors | None = None,
    backend: str = "auto",
) -> BlockScores:
    """Singular values of every block of rows, and the gradient of the loss with respect to each.

    ∂L/∂σᵢ = uᵢᵀ G vᵢ (Lemma 1 of arXiv 2510.20800). Shrinking σᵢ lowers the loss where it is positive. It is 0
    where σᵢ is not resolved (σᵢ ≤ √(b·eps64)·σ₁). It is linear in `grad`, so micro-batches may be added up.

    Args:
        weight: `[…, m, n]`, as in `block_svd`.
        grad: ∂L/∂weight, of the weight's shape; its dtype may differ.
        blocks: number K of consecutive blocks, or a `Partition`; ignored where `factors` are given.
        factors: what `block_svd` returned for this weight, to skip the factorisation.
        backend: "auto", "reference", "gram", "triton" or "cuda".

    Returns:
        `BlockScores`, the named tuple `(sigma, grad)`, each `[…, K, r]` in FP64.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, or a NaN or Inf in weight or gradient.
    """
    weight, partition = _checked(weight, blocks, backend, factors)
    _check_plain(factors)
    check_dense("grad", grad)
    if grad.shape != weight.shape or grad.device != weight.device:
        raise LasertriError(
            f"expected a gradient like the weight, {list(weight.shape)} on {weight.device}, "
            f"got {list(grad.shape)} on {grad.device}"
        )
    basis, known = (None, None) if factors is None else (factors.basis, factors.sigma)
    order = _order(partition, weight)
    sigma, slope = library.score_blocks(weight, grad.detach(), basis, known, partition.offsets, order, backend)
    return BlockScores(sigma, slope, lengths(partition.offsets, weight.shape[-1]))


def reduce_blocks(
    weight: Tensor,
    *,
    ranks: int | Sequence[int] | None = None,
    ratios: float | Sequence[float] | None = None,
    blocks: int | Partition = 1,
    inputs: Tensor | None = None,
    damping: float = 0.01,
    factors: BlockFactors | None = None,
    backend: str = "auto",
    precision: str = "float64",
) -> Tensor:
    """Truncate every block of rows to a lower rank: all ranks asked for at the price of one factorisation.

    Args:
        weight: `[…, m, n]`, as in `block_svd`.
        ranks: retained rank of each block; a block with fewer singular values is kept whole.
        ratios: retained ratio ρ instead, rank `int(min(b, n) * ρ)` for a block of b rows; ρ = 0 gives zeros.
        blocks: number K of consecutive blocks, or a `Partition`; ignored where `factors` are given.
        inputs: as in `block_svd`, for the least error of the outputs instead of the weight's; ignored where `factors`
            are given.
        damping: as in `block_svd`.
        factors: what `block_svd` returned for this weight, to skip the factorisation.
        backend: "auto", "reference", "gram", "triton" or "cuda".
        precision: "float64", or "float32", faster on wide and tall blocks: `gram` then returns to FP64 for each block
            whose spectrum its FP32 Gram matrix does not resolve at the ranks asked for.

    Returns:
        The weight's shape and dtype for a scalar; for a sequence a stack of those in front. Never a view.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, or a NaN or Inf in the weight.
    """
    weight, partition = _checked(weight, blocks, backend, factors)
    check_name("a precision", precision, PRECISIONS)
    per_block, scalar = block_ranks(lengths(partition.offsets, weight.shape[-1]), ranks, ratios)
    if inputs is not None and factors is None:
        factors = block_svd(weight, blocks=partition, inputs=inputs, damping=damping, backend=backend)
    stack = library.reduce_blocks(
        weight,
        None if factors is None else factors.basis,
        [rank for request in per_block for rank in request],
        partition.offsets,
        _order(partition, weight),
        backend,
        precision,
    )
    return stack[0] if scalar else stack


def scale_blocks(
    weight: Tensor,
    scales: Tensor,
    *,
    factors: BlockFactors,
    backend: str = "auto",
    precision: str = "float64",
) -> Tensor:
    """Multiply the singular values of every block of rows: Q diag(s) Qᵀ A, or A Q diag(s) Qᵀ for tall blocks.

    With σ and ∂L/∂σ of `score_blocks`, s = 1 − η σ ∂L/∂σ is a step of the singular values down the loss.

    Args:
        weight: `[…, m, n]`, as in `block_svd`.
        scales: s `[…, K, r]`, of the shape of `factors.sigma`, any floating dtype; what pads shorter blocks is ignored.
        factors: what `block_svd` returned for this weight.
        backend: "auto", "reference", "gram", "triton" or "cuda".
        precision: of the change to a weight narrower than FP64, "float64" or "float32". Where all s are 1 the weight
            keeps every digit but in the reference.

    Returns:
        The weight's shape and dtype. Never a view.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, or a NaN or Inf in weight or scales.

    Example:
        >>> import torch
        >>> from lasertri import block_svd, scale_blocks
        >>> weight = torch.randn(6, 8)
        >>> factors = block_svd(weight, blocks=2)
        >>> halved = scale_blocks(weight, torch.full_like(factors.sigma, 0.5), factors=factors)
        >>> torch.allclose(halved, weight / 2)
        True
    """
    _check_factors(factors)
    weight, partition = _checked(weight, 1, backend, factors)
    _check_plain(factors)
    check_name("a precision", precision, PRECISIONS)
    check_dense("scales", scales)
    shape = factors.sigma.shape
    if scales.shape != shape or scales.device != weight.device:
        raise LasertriError(
            f"expected scales {list(shape)} on {weight.device}, one for each singular value, got {list(scales.shape)} "
            f"on {scales.device}"
        )
    order = _order(partition, weight)
    return library.scale_blocks(
        weight, scales.detach(), factors.basis.detach(), partition.offsets, order, backend, precision
    )


def linear_blocks(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ranks: int | Sequence[int] | None = None,
    ratios: float | Sequence[float] | None = None,
    blocks: int | Partition = 1,
    factors: BlockFactors | None = None,
    projected: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`F.linear(x, W, bias)` for every truncation W of a weight at once, without making one.

    Truncation is a projection, so where Q is short beside the block it acts on the output, x Wᵀ Q_k Q_kᵀ, else on the
    input, x Q_k (W Q_k)ᵀ; all ranks are prefixes of one sum. Products are FP32 at least, and rounded once.

    Args:
        x: `[…, n]`, FP32, FP64, BF16 or FP16.
        weight: `[m, n]`, as `torch.nn.Linear` has it.
        bias: `[m]`, or None.
        ranks: retained rank of each block, as in `reduce_blocks`.
        ratios: retained ratio ρ instead.
        blocks: number K of consecutive blocks, or a `Partition`; ignored where `factors` are given.
        factors: what `block_svd` returned for this weight, to skip the factorisation.
        projected: W_j Q_j of every block, `[m, r]`, FP32 or better, where it is known (`project_blocks` makes it): it
            spares tall blocks that product.
        backend: "auto", "reference", "gram", "triton" or "cuda".

    Returns:
        `[…, m]` in the dtype of x for a scalar; for a sequence a stack of those in front.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, or a NaN or Inf in a weight that is factored here.
    """
    weight, partition = _checked(weight, blocks, backend, factors)
    check_dense("x", x)
    if weight.dim() != 2 or x.shape[-1:] != weight.shape[1:] or x.device != weight.device:
        raise LasertriError(
            f"expected x [..., {weight.shape[-1]}] for a weight of two dimensions on {weight.device}, got x "
            f"{list(x.shape)} on {x.device} for a weight {list(weight.shape)}"
        )
    for name, tensor, expected, dtypes in (
        ("bias", bias, weight.shape[:1], DTYPES),
        ("projected", projected, (len(weight), max(lengths(partition.offsets, weight.shape[-1]))), WIDE),
    ):
        if tensor is None:
            continue
        check_dense(name, tensor, dtypes)
        if tensor.shape != expected or tensor.device != x.device:
            raise LasertriError(
                f"expected {name} {list(expected)} on {x.device}, got {list(tensor.shape)} on {tensor.device}"
            )
    per_block, scalar = block_ranks(lengths(partition.offsets, weight.shape[-1]), ranks, ratios)
    if factors is None:
        factors = block_svd(weight, blocks=partition, backend=backend)
    stack = library.linear_blocks(
        x.detach().reshape(-1, x.shape[-1]),
        weight,
        None if bias is None else bias.detach(),
        None if projected is None else projected.detach(),
        factors.basis,
        [rank for request in per_block for rank in request],
        partition.offsets,
        _order(partition, weight),
        backend,
    )
    stack = stack.reshape(len(per_block), *x.shape[:-1], len(weight))
    return stack[0] if scalar else stack


def project_blocks(weight: Tensor, factors: BlockFactors) -> Tensor:
    """A_j Q_j of every block, in its rows' places and the basis's dtype: `projected` of `linear_blocks`.

    Args:
        weight: `[m, n]`, as in `block_svd`, whose factors have the side "right".

    Returns:
        `[m, r]`, zeros beyond the singular values of a shorter block.

    Raises:
        LasertriError: these are no factors of the weight, or of its outputs' side.
    """
    _check_factors(factors)
    weight, _ = _checked(weight, 1, "auto", factors)
    if weight.dim() != 2 or factors.side != "right":
        raise LasertriError(
            f"expected a weight of two dimensions with factors on the right side, got {list(weight.shape)} with those "
            f"on the {factors.side}; wide blocks need no projection"
        )
    order, offsets = _order(factors.partition, weight), factors.partition.offsets
    out = factors.basis.new_zeros(len(weight), factors.basis.shape[-1])
    for j, length in enumerate(factors.lengths):
        rows: slice | Tensor = slice(offsets[j], offsets[j + 1])
        if order is not None:
            rows = order[rows]
        with full_fp32(weight.device):
            out[rows, :length] = weight[rows].to(out.dtype) @ factors.basis[j, :, :length]
    return out


def lowrank_blocks(
    weight: Tensor,
    *,
    rank: int,
    blocks: int | Partition = 1,
    backend: str = "auto",
    precision: str = "float64",
) -> LowRank:
    """Best approximation of every block of rows by a product of two thin factors: of a gradient, the plain step.

    Where the rank is small beside the short side, block Krylov iteration finds it in a few passes over the matrix, its
    squared residual within about 1e-7 of the least there is (Eckart–Young); else an eigenproblem of that side does.
    The iteration's start is seeded: the same bits every time.

    Args:
        weight: `[…, m, n]`, a weight or a gradient, as in `block_svd`.
        rank: of every block, from 0 to min(b, n) of the largest; a smaller block is kept whole.
        blocks: number K of consecutive blocks, or a `Partition` of the rows.
        backend: "auto", "reference", "gram", "triton" or "cuda".
        precision: "float64", or "float32", faster; FP64 comes back where FP32 would not resolve the rank.

    Returns:
        `LowRank`, the named tuple `(left, right, sigma)`, in FP32, or FP64 for a weight in FP64; σ is FP64.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, or a NaN or Inf in the weight.

    Example:
        >>> import torch
        >>> from lasertri import lowrank_blocks
        >>> step = lowrank_blocks(torch.randn(6, 8), rank=2, blocks=3)
        >>> (step.left[:2] @ step.right[0]).shape
        torch.Size([2, 8])
    """
    check_matrices(weight=weight)
    rows, columns = weight.shape[-2:]
    partition = _low_rank_options(rows, columns, rank, blocks, backend, precision, weight.device)
    options = int(rank), partition.offsets, _order(partition, weight), backend, precision
    return LowRank(*library.lowrank_blocks(weight.detach(), *options))


def whiten_blocks(
    deltas: Tensor,
    inputs: Tensor,
    *,
    rank: int,
    blocks: int | Partition = 1,
    damping: float = 0.1,
    backend: str = "auto",
    precision: str = "float64",
) -> LowRank:
    """Best rank of the gradient of a weight, whitened on both sides: (B + λ_B)^-½ G (C + λ_C)^-½.

    Of T tokens, X are a layer's inputs and Δ the gradients of the loss at its outputs, so G = ΔᵀX is the weight's
    gradient and B = ΔᵀΔ, C = XᵀX are their second moments; λ_B = damping · tr(B) / m, λ_C = damping · tr(C) / n. The
    singular values are the damped canonical correlations of Δ and X (Hotelling, 1936), from 0 to 1; the scale of
    neither matters. Where tokens are fewer than features, nothing of the weight's size is formed: each side's
    eigenproblem is that of min(T, m) or min(T, n). Where the rank is small beside all of these, a GPU solves none so
    large, but iterates: the squared residual is then within about 1e-7 of the least there is, in FP64 too.

    Args:
        deltas: Δ `[…, T, m]`; fp32, fp64, bf16 or fp16, any strides, CPU or CUDA. Leading dimensions are a stack of
            equal layers. Detached: the op is not differentiable.
        inputs: X `[…, T, n]`, of the same stack; its dtype may differ.
        rank: of every block, from 0 to min(m, n) of the largest; a smaller block has its own.
        blocks: number K of consecutive blocks of the weight's rows, or a `Partition` of them; each is whitened by its
            own part of B.
        damping: share of the mean eigenvalue that is added to all, more than 0.
        backend: "auto", "reference", "gram", "triton" or "cuda".
        precision: "float64", or "float32", in about half the time: σ² is then known to about eps32 · size / damping at
            worst, 1e-3, and where no direction holds most of the second moments to 1e-4. The reference computes
            in FP64 always; so do the others where tokens point nearly all in one direction, and where a GPU that is as
            fast in FP64 iterates.

    Returns:
        `LowRank`, the named tuple `(left, right, sigma)`, in FP32, or FP64 where one of the inputs is; σ is FP64.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, or a NaN or Inf in deltas or inputs.

    Example:
        >>> import torch
        >>> from lasertri import whiten_blocks
        >>> deltas, inputs = torch.randn(50, 6), torch.randn(50, 8)
        >>> step = whiten_blocks(deltas, inputs, rank=2)
        >>> (step.left @ step.right[0]).shape
        torch.Size([6, 8])
    """
    check_matrices(deltas=deltas, inputs=inputs)
    if inputs.shape[:-1] != deltas.shape[:-1] or inputs.device != deltas.device:
        raise LasertriError(
            f"expected inputs [..., T, n] of the tokens of deltas {list(deltas.shape)} on {deltas.device}, "
            f"got {list(inputs.shape)} on {inputs.device}; give the same tokens to both"
        )
    partition = _low_rank_options(deltas.shape[-1], inputs.shape[-1], rank, blocks, backend, precision, deltas.device)
    _check_damping(damping)
    order = _order(partition, deltas)
    options = int(rank), partition.offsets, order, float(damping), backend, precision
    return LowRank(*library.whiten_blocks(deltas.detach(), inputs.detach(), *options))


def whiten_moments(
    grad: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    *,
    rank: int,
    blocks: int | Partition = 1,
    damping: float = 0.1,
    backend: str = "auto",
    precision: str = "float64",
) -> LowRank:
    """`whiten_blocks` of tokens that were added up: from G = ΔᵀX, B = ΔᵀΔ and C = XᵀX.

    Args:
        grad: G `[…, m, n]`, the weight's gradient.
        outputs: B `[…, m, m]`, second moment of the gradients at the outputs; its lower triangle is read.
        inputs: C `[…, n, n]`, second moment of the inputs; its lower triangle is read.
        rank: of every block, as in `whiten_blocks`.
        blocks: number K of consecutive blocks of the weight's rows, or a `Partition` of them.
        damping: share of the mean eigenvalue that is added to all, more than 0.
        backend: "auto", "reference", "gram", "triton" or "cuda".
        precision: "float64", or "float32", as in `whiten_blocks`.

    Returns:
        `LowRank`, as `whiten_blocks`.

    Raises:
        LasertriError: a shape, dtype or option that cannot be used, or a NaN or Inf in one of the three.

    Example:
        >>> import torch
        >>> from lasertri import whiten_moments
        >>> deltas, inputs = torch.randn(50, 6), torch.randn(50, 8)
        >>> step = whiten_moments(deltas.mT @ inputs, deltas.mT @ deltas, inputs.mT @ inputs, rank=2)
        >>> step.sigma.shape
        torch.Size([1, 2])
    """
    check_matrices(grad=grad, outputs=outputs, inputs=inputs)
    rows, columns = grad.shape[-2:]
    for name, moment, size in (("outputs", outputs, rows), ("inputs", inputs, columns)):
        if moment.shape != (*grad.shape[:-2], size, size) or moment.device != grad.device:
            raise LasertriError(
                f"expected {name} {[*grad.shape[:-2], size, size]} on {grad.device} for a gradient "
                f"{list(grad.shape)}, got {list(moment.shape)} on {moment.device}; add up the products of the same rows"
            )
    partition = _low_rank_options(rows, columns, rank, blocks, backend, precision, grad.device)
    _check_damping(damping)
    options = int(rank), partition.offsets, _order(partition, grad), float(damping), backend, precision
    return LowRank(*library.whiten_moments(grad.detach(), outputs.detach(), inputs.detach(), *options))


def _check_factors(factors: BlockFactors) -> None:
    """Raise unless these are factors, of whatever weight."""
    parts = (Partition, int | torch.SymInt, bool)
    if not isinstance(factors, BlockFactors) or not all(map(isinstance, factors[2:], parts)):
        got = shown(factors[2:]) if isinstance(factors, BlockFactors) else type(factors).__name__
        raise LasertriError(f"expected the BlockFactors that block_svd returned, got {got}")
    check_dense("the factors' basis", factors.basis, WIDE)
    check_dense("the factors' singular values", factors.sigma, WIDE)


def _check_plain(factors: BlockFactors | None) -> None:
    if factors is not None and factors.whitened:
        raise LasertriError("expected factors of the weight itself, got whitened ones; call block_svd without inputs")


def _check_damping(damping: float) -> None:
    if not is_number(damping) or not 0 < damping <= sys.float_info.max:
        raise LasertriError(f"expected a damping above 0, got {shown(damping)}; 0.1 is usual")


def _low_rank_options(
    rows: int,
    columns: int,
    rank: int,
    blocks: int | Partition,
    backend: str,
    precision: str,
    device: torch.device,
) -> Partition:
    """The partition, once the options of a low-rank op are known to fit a weight `[rows, columns]`."""
    partition = _partition(rows, blocks)
    if not is_whole(rank):
        raise LasertriError(f"expected one rank, an integer, got {shown(rank)}")
    block_ranks(lengths(partition.offsets, columns), rank, None)
    check_name("a precision", precision, PRECISIONS)
    _check_backend(backend, device)
    return partition


def _partition(rows: int, blocks: int | Partition) -> Partition:
    partition = blocks if isinstance(blocks, Partition) else Partition.consecutive(rows, blocks)
    if partition.rows != rows:
        raise LasertriError(f"expected a partition of {rows} rows, got one of {partition.rows}")
    return partition


def _check_backend(backend: str, device: torch.device, method: str = "auto") -> None:
    if not torch.compiler.is_compiling():  # the op asks again when it runs
        choose_backend(backend, device, method)


def _checked(
    weight: Tensor,
    blocks: int | Partition,
    backend: str,
    factors: BlockFactors | None = None,
    method: str = "auto",
) -> tuple[Tensor, Partition]:
    """The detached weight and its partition, once both are known to fit."""
    check_matrices(weight=weight)
    rows, columns = weight.shape[-2:]
    if factors is not None:
        _check_factors(factors)
    partition = _partition(rows, blocks if factors is None else factors.partition)
    if factors is not None:
        short = max(partition.heights) if factors.side == "left" else columns
        expected = (*weight.shape[:-2], partition.blocks, max(lengths(partition.offsets, columns)))
        shapes = factors.sigma.shape, factors.basis.shape
        if (
            factors.columns != columns
            or shapes != (expected, (*expected[:-1], short, expected[-1]))
            or {factors.sigma.device, factors.basis.device} != {weight.device}
        ):
            raise LasertriError(
                f"expected factors of this weight {list(weight.shape)} on {weight.device}, got factors with "
                f"singular values {list(factors.sigma.shape)} and a basis {list(factors.basis.shape)} on "
                f"{factors.basis.device}; call block_svd on it"
            )
    check_name("a method", method, METHODS)
    _check_backend(backend, weight.device, method)
    return weight.detach(), partition


def _order(partition: Partition, weight: Tensor) -> Tensor | None:
    return None if partition.order is None else partition.order.to(weight.device)
