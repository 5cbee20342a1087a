"""LASER's own truncation, for comparison: a randomised SVD for each rank, and its rank in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

POWER_ITERATIONS = 2  # of LASER's decoders; its RoBERTa takes 20


def laser_rank(length: int, ratio: float) -> int:
    """Retained rank as LASER's code computes it from a rate, `int(min(m, n) * ((10 - rate) * 0.1))`.

    It differs from `int(min(m, n) * ρ)` where rounding of the rate falls short of a whole number.
    """
    rate = round(10 * (1 - ratio), 10)
    return int(length * ((10 - rate) * 0.1))


def laser_factors(weight: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`[m, n]` -> U Σ `[m, r]` and Vᵀ `[r, n]` in FP32 by `torch.svd_lowrank`, seeded, which LASER is not."""
    if rank == 0:
        return weight.new_zeros(len(weight), 0, dtype=torch.float32), weight.new_zeros(0, weight.shape[1]).float()
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []), torch.no_grad():
        torch.manual_seed(seed)
        u, sigma, v = torch.svd_lowrank(weight.float(), q=rank, niter=POWER_ITERATIONS)
    return u * sigma, v.mT
