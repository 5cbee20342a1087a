"""Rows that share a subspace put into one block, so that truncation removes less of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lasertri.errors import LasertriError
from lasertri.ops.arguments import check_matrices, check_whole
from lasertri.ops.blocks import Partition
from lasertri.ops.functional import block_svd

IMPROVEMENT = 1e-9  # of the objective; a smaller one ends the iterations
RESOLVED = 1e-13  # of a squared norm; FP64 tells smaller residuals neither apart nor from zero


def subspace_partition(
    weight: Tensor, *, blocks: int, dimension: int, seed: int = 0, restarts: int = 4, iterations: int = 50
) -> Partition:
    """Cluster rows by the subspace they lie in: what arXiv 2510.20800 calls optimal clustering.

    K-subspaces (Bradley and Mangasarian, "k-plane clustering", 2000): each row joins the cluster whose subspace leaves
    the smallest residual, each cluster's subspace becomes its top right singular vectors, in turns. The residual never
    rises; where it settles depends on the start, so the best of several is taken.

    Args:
        weight: `[m, n]`, any floating dtype, CPU or CUDA; computed in FP64.
        blocks: number K of clusters; each gets a row at least.
        dimension: d of every cluster's subspace: the rank that its block is to be truncated to. With 0, and for a
            single cluster, there is nothing to choose between and the blocks are consecutive.
        seed: of the random starts, which are drawn on the CPU.
        restarts: number of starts; the first is the consecutive blocks, so the result is never worse than those.
        iterations: most turns for each start.

    Returns:
        `Partition` with the rows of each cluster in ascending order.

    Raises:
        LasertriError: a shape, dtype or number that cannot be used, or a NaN or Inf in the weight.
    """
    check_matrices(weight=weight)
    if weight.dim() != 2:
        raise LasertriError(f"expected a weight [rows, columns], got {list(weight.shape)}; take one of a stack")
    for name, value, lowest in (
        ("dimension", dimension, 0),
        ("seed", seed, 0),
        ("restarts", restarts, 1),
        ("iterations", iterations, 0),
    ):
        check_whole(name, value, lowest)
    consecutive = Partition.consecutive(len(weight), blocks)
    if dimension == 0 or blocks == 1:
        return consecutive
    rows, generator = weight.detach().double(), torch.Generator().manual_seed(int(seed))
    resolved = RESOLVED * float(rows.square().sum())
    labels = torch.arange(blocks).repeat_interleave(torch.tensor(consecutive.heights)).to(rows.device)
    best, least = _settle(rows, labels, blocks, dimension, iterations)
    for _ in range(restarts - 1):
        if least <= resolved:
            break
        labels, residual = _settle(rows, _start(rows, blocks, dimension, generator), blocks, dimension, iterations)
        if residual < least:
            best, least = labels, residual
    heights = torch.bincount(best, minlength=blocks)
    return Partition((0, *heights.cumsum(0).tolist()), best.sort(stable=True).indices.cpu())


def _settle(rows: Tensor, labels: Tensor, blocks: int, dimension: int, iterations: int) -> tuple[Tensor, float]:
    """Labels `[m]` and their residual after turns of assigning and fitting, until neither changes much."""
    norms = rows.square().sum(-1)
    bases, residual = _fit_all(rows, labels, blocks, dimension)
    for _ in range(iterations):
        if residual <= RESOLVED * float(norms.sum()):
            break
        least, nearest = torch.stack([_distances(rows, norms, basis) for basis in bases], dim=-1).min(dim=-1)
        moved = _fill_empty(nearest, least, blocks)
        if torch.equal(moved, labels):
            break
        bases, fitted = _fit_all(rows, moved, blocks, dimension)
        if fitted > (1 - IMPROVEMENT) * residual:  # rows that two subspaces fit alike have moved
            break
        labels, residual = moved, fitted
    return labels, residual


def _start(rows: Tensor, blocks: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Labels `[m]` for subspaces of rows that point alike, each round a row that those before it fit badly."""
    norms = rows.square().sum(-1)
    unit = rows / norms.sqrt().clamp(min=torch.finfo(rows.dtype).tiny).unsqueeze(-1)
    least, labels = norms, torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for j in range(blocks):
        chances = torch.where(least > RESOLVED * norms, least, 0).cpu()
        chances = chances if chances.any() else torch.ones_like(chances)
        seed = torch.multinomial(chances, 1, generator=generator).to(rows.device)
        alike = (unit @ unit[seed].mT).squeeze(-1).abs().topk(min(2 * dimension, len(rows))).indices
        distances = _distances(rows, norms, _fit(rows[alike], dimension)[0])
        labels = torch.where(distances < least, j, labels)
        least = torch.minimum(least, distances)
    return _fill_empty(labels, least, blocks)


def _fill_empty(labels: Tensor, distances: Tensor, blocks: int) -> Tensor:
    """An empty cluster takes the worst-fitted row `[m]` of those that can spare one, and fits it exactly."""
    labels, heights = labels.clone(), torch.bincount(labels, minlength=blocks)
    for empty in (heights == 0).nonzero().flatten().tolist():
        row = torch.where(heights[labels] > 1, distances, -1).argmax()
        heights[labels[row]] -= 1
        heights[empty] += 1
        labels[row] = empty
    return labels


def _fit_all(rows: Tensor, labels: Tensor, blocks: int, dimension: int) -> tuple[list[Tensor], float]:
    """Every cluster's basis, and the residual of them all."""
    fits = [_fit(rows[labels == j], dimension) for j in range(blocks)]
    return [basis for basis, _ in fits], sum(residual for _, residual in fits)


def _fit(cluster: Tensor, dimension: int) -> tuple[Tensor, float]:
    """The best subspace of rows `[b, n]`, an orthonormal `[n, min(b, n, d)]`, and the squares it leaves."""
    factors = block_svd(cluster)
    top = factors.basis[0, :, :dimension]
    basis = top if factors.side == "right" else torch.linalg.qr(cluster.mT @ top).Q
    return basis, float(factors.sigma[0, dimension:].square().sum())


def _distances(rows: Tensor, norms: Tensor, basis: Tensor) -> Tensor:
    """Squared distance `[m]` of every row to a subspace."""
    return (norms - (rows @ basis).square().sum(-1)).clamp(min=0)
