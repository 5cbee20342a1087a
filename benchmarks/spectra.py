"""Seeded matrices with a chosen spectrum, for benchmarks and tests: made in FP64, then rounded to the dtype."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Spectrum = Callable[..., Tensor]  # (rows, columns, *, seed)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator(seed))
    return (drawn / shape[-1] ** 0.5).to(dtype)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.linalg.qr(gaussian(rows, columns, seed=seed)).Q


def with_spectrum(
    sigma: Tensor, rows: int, columns: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    r = len(sigma)
    u, v = orthonormal(rows, r, seed), orthonormal(columns, r, seed + 1000)
    return ((u * sigma.double()) @ v.mT).to(dtype)


def power_law(
    rows: int, columns: int, *, condition: float = 1e4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """σᵢ = i^-p with σ₁/σᵣ = condition."""
    r = min(rows, columns)
    sigma = torch.arange(1, r + 1, dtype=torch.float64) ** -(math.log(condition) / math.log(max(2, r)))
    return with_spectrum(sigma, rows, columns, seed=seed, dtype=dtype)


def spiked(rows: int, columns: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A Gaussian bulk under power-law spikes, as trained weights look."""
    spikes = 8 / torch.arange(1, max(2, min(rows, columns) // 16) + 1, dtype=torch.float64)
    return (gaussian(rows, columns, seed=seed) + with_spectrum(spikes, rows, columns, seed=seed + 1)).to(dtype)


def gapped(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Neighbouring singular values differ by a constant factor, so every truncation is unique."""
    *batch, rows, columns = shape
    sigma = torch.logspace(0, -1.5, min(rows, columns), dtype=torch.float64)
    stack = [with_spectrum(sigma, rows, columns, seed=seed + 17 * i) for i in range(math.prod(batch))]
    return torch.stack(stack).reshape(shape).to(dtype) if stack else torch.zeros(shape, dtype=dtype)


def stacked(spectrum: Spectrum, rows: int, columns: int, blocks: int, *, seed: int = 0) -> Tensor:
    """A matrix each of whose blocks has the spectrum (a slice of a matrix would not)."""
    heights = [rows // blocks + (j < rows % blocks) for j in range(blocks)]
    return torch.cat([spectrum(height, columns, seed=seed + 31 * j) for j, height in enumerate(heights)])


def tokens(count: int, size: int, *, seed: int = 0) -> Tensor:
    """A layer's tokens in FP32: singular values that fall as i^-0.8.

    Two sides of them have canonical correlations that fall about as slowly as those of a real model's.
    """
    drawn = generator(seed)
    left, right = (torch.randn(rows, count, generator=drawn) for rows in (count, size))
    return left * torch.arange(1, count + 1) ** -0.8 @ right.mT
