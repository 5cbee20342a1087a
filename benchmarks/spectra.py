"""Seeded FP64 matrices whose every block has a chosen spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Spectrum = Callable[[int, int, int], Tensor]  # rows, columns, seed


def gaussian(rows: int, columns: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn / columns**0.5


def with_spectrum(sigma: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    u = torch.linalg.qr(gaussian(rows, len(sigma), seed)).Q
    v = torch.linalg.qr(gaussian(columns, len(sigma), seed + 1000)).Q
    return (u * sigma) @ v.mT


def spiked(rows: int, columns: int, seed: int) -> Tensor:
    """A Gaussian bulk under power-law spikes, as trained weights look."""
    spikes = 8 / torch.arange(1, max(2, min(rows, columns) // 16) + 1, dtype=torch.float64)
    return gaussian(rows, columns, seed) + with_spectrum(spikes, rows, columns, seed + 1)


def power_law(condition: float) -> Spectrum:
    """σᵢ = i^-p with σ₁/σᵣ = condition."""

    def make(rows: int, columns: int, seed: int) -> Tensor:
        r = min(rows, columns)
        sigma = torch.arange(1, r + 1, dtype=torch.float64) ** -(math.log(condition) / math.log(r))
        return with_spectrum(sigma, rows, columns, seed)

    return make


def stacked(spectrum: Spectrum, rows: int, columns: int, blocks: int, seed: int = 0) -> Tensor:
    """A matrix of K equal blocks, each with the spectrum: a slice of one matrix would have another."""
    return torch.cat([spectrum(rows // blocks, columns, seed + 31 * j) for j in range(blocks)])
