"""What tensor cores make of a product, imitated in NumPy: how inexact a kernel may be, told before one has run.

A step multiplies a few pairs exactly and adds them to the sum: all are shifted to the largest exponent among them, what
is shifted out is cut off, and so is the result to FP32. This was measured on an A100 (Fasi, Higham, Mikaitis, Pranesh:
*Numerical behavior of NVIDIA tensor cores*, 2021); later ones take more pairs in a step and keep more bits. The order
of steps is a guess. Long sums lose digits that FP32 sums, which are rounded, keep.

python benchmarks/tensor_cores.py
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # holding values of a narrower type

PAIRS = {"tf32": 4, "half": 8}  # of a step on sm_80
TILE = 32  # of the summed dimension, as in `kernels/tiles.py`
EXTRA_BITS = 1  # that are kept below those of FP32 while a step adds


def product(left: Matrix, right: Matrix, total: Matrix, pairs: int) -> Matrix:
    """`total + left @ right` of operands in TF32, BF16 or FP16, summed as tensor cores do."""
    for start in range(0, left.shape[-1], pairs):
        part = slice(start, start + pairs)
        terms = np.concatenate([total[..., None], left[:, None, part] * right[part].T], axis=-1)
        _, exponent = np.frexp(np.abs(terms).max(axis=-1))
        unit = np.ldexp(1.0, exponent - 24 - EXTRA_BITS)
        total = cut((np.trunc(terms / unit[..., None]) * unit[..., None]).sum(axis=-1), 24)
    return total


def tf32(left: Matrix, right: Matrix) -> Matrix:
    """A product of FP32 values, of which tensor cores read 11 bits."""
    return product(cut(left, 11), cut(right, 11), np.zeros((len(left), right.shape[1])), PAIRS["tf32"])


def tf32x3(left: Matrix, right: Matrix) -> Matrix:
    """A product of FP32 values, each split in two of 11 bits; that of the two small parts is left out."""
    large_left, large_right = rounded(left, 11), rounded(right, 11)
    small_left, small_right = rounded(left - large_left, 11), rounded(right - large_right, 11)
    total = np.zeros((len(left), right.shape[1]))
    for start in range(0, left.shape[1], TILE):
        part = slice(start, start + TILE)
        for a, b in ((small_left, large_right), (large_left, small_right), (large_left, large_right)):
            total = product(a[:, part], b[part], total, PAIRS["tf32"])
    return total


def half(left: Matrix, right: Matrix) -> Matrix:
    """A product of BF16 or FP16 values."""
    return product(left, right, np.zeros((len(left), right.shape[1])), PAIRS["half"])


def rounded(values: Matrix, bits: int) -> Matrix:
    """To the nearest of so many bits, ties away from zero."""
    mantissa, exponent = np.frexp(values)
    scaled = np.ldexp(mantissa, bits)
    return np.ldexp(np.trunc(scaled + np.copysign(0.5, scaled)), exponent - bits)


def cut(values: Matrix, bits: int) -> Matrix:
    """Towards zero, to so many bits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.trunc(np.ldexp(mantissa, bits)), exponent - bits)


@functools.cache
def error(arithmetic: str, terms: int) -> float:
    """Largest error over largest value of a Gram matrix of 16 Gaussian rows, whose diagonal only grows: the worst case.

    Args:
        arithmetic: "tf32", "tf32x3" or "half", as in `kernels/tiles.py`.
        terms: length of the sums.
    """
    values = np.random.default_rng(0).standard_normal((16, terms))
    values = rounded(values, 8 if arithmetic == "half" else 24)
    exact = values @ values.T
    modelled = {"tf32": tf32, "tf32x3": tf32x3, "half": half}[arithmetic](values, values.T)
    return float(np.abs(modelled - exact).max() / exact.max())


def main() -> None:
    lengths = (32, 128, 512, 1024, 4096, 16384)
    print("terms   " + "".join(f"{terms:9}" for terms in lengths))
    for arithmetic in ("tf32", "tf32x3", "half"):
        print(f"{arithmetic:8}" + "".join(f"{error(arithmetic, terms):9.0e}" for terms in lengths))


if __name__ == "__main__":
    main()
