"""LASER's own truncation (pratyushasharma/laser), for comparison: its rates, and a randomised SVD for each rank."""

from __future__ import annotations

import torch
from torch import Tensor

from lasertri.ops.blocks import retained_rank
from lasertri.ops.converging import solvers_named

POWER_ITERATIONS = 2  # of LASER's decoders; its RoBERTa takes 20


def rank_at_rate(length: int, rate: float) -> int:
    """Retained rank of `length` singular values at one of LASER's rates, as its code computes it.

    A rate of 0 removes nothing and one of 10 everything. It differs from `int(min(m, n) * ρ)` with ρ = 1 − rate / 10
    where rounding of the rate falls short of a whole number.
    """
    return retained_rank(length, (10 - rate) * 0.1)


def laser_rank(length: int, ratio: float) -> int:
    """The same for a retained ratio ρ from 0 to 1: the rank at the rate that stands for it."""
    return rank_at_rate(length, round(10 * (1 - ratio), 10))


def laser_factors(weight: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`[m, n]` -> U Σ `[m, r]` and Vᵀ `[r, n]` in FP32 by `torch.svd_lowrank`, seeded, which LASER is not."""
    if rank == 0:
        return weight.new_zeros(len(weight), 0, dtype=torch.float32), weight.new_zeros(0, weight.shape[1]).float()
    own = [weight.device] if weight.is_cuda else []
    with torch.random.fork_rng(devices=own), torch.no_grad(), solvers_named():
        torch.manual_seed(seed)
        u, sigma, v = torch.svd_lowrank(weight.float(), q=rank, niter=POWER_ITERATIONS)
    return u * sigma, v.mT
