"""Launch configurations, a pure function of precision, shape and device; `benchmarks/tune_kernels.py` times them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lasertri.errors import LasertriError

PRECISIONS = ("ieee", "tf32x3", "tf32")


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of the output and of the summed dimension, warps per program, and depth of the load pipeline."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def fitted(self, rows: int, columns: int, inner: int) -> Tiles:
        """Not larger than a small problem needs; `tl.dot` takes no side below 16."""
        return replace(
            self,
            rows=min(self.rows, _power_of_two(rows)),
            columns=min(self.columns, _power_of_two(columns)),
            inner=min(self.inner, _power_of_two(inner)),
        )


# By the arithmetic of the products, then by the oldest compute capability they are for. The same for every kernel, as
# each is one tile product with another ending. TF32 and halves run on tensor cores, and FP64 where there are any for it
# (not on 86, 89 and 120), "ieee" FP32 on none. They are the largest tried at which no thread runs out of registers
# (`benchmarks/kernel_resources.py`); no GPU has timed them.
TABLE = {
    "float64": {
        80: Tiles(128, 64, 16, 8, 3),
        86: Tiles(64, 64, 16, 8, 3),
        90: Tiles(128, 64, 16, 8, 3),
        120: Tiles(64, 64, 16, 8, 3),
    },
    "ieee": {80: Tiles(64, 32, 16, 4, 3)},
    "tf32x3": {80: Tiles(64, 32, 32, 4, 3), 90: Tiles(64, 128, 32, 8, 3), 120: Tiles(64, 32, 32, 4, 3)},
    "tf32": {80: Tiles(128, 128, 32, 8, 3), 100: Tiles(128, 64, 32, 8, 3)},
    "half": {80: Tiles(128, 128, 32, 8, 3), 90: Tiles(128, 128, 64, 8, 3)},
}
# Instead of these where operands are not aligned: each element is then loaded by an address of its own, in registers.
UNALIGNED = {
    "float64": Tiles(64, 64, 16, 8, 3),
    "tf32x3": Tiles(64, 32, 32, 4, 3),
    "tf32": Tiles(64, 64, 32, 8, 3),
    "half": Tiles(64, 64, 32, 4, 3),
}


def arithmetic(compute: torch.dtype, precision: str) -> str:
    """The row of `TABLE` that products of this type and precision belong to."""
    if precision not in PRECISIONS:
        raise LasertriError(f"expected a precision of FP32 products among {list(PRECISIONS)}, got {precision!r}")
    if compute == torch.float64:
        return "float64"
    return precision if compute == torch.float32 else "half"


def aligned(*operands: Tensor) -> bool:
    """Whether sizes, strides other than 1 and first elements let a kernel load and store 16 bytes at once."""
    return all(
        operand.storage_offset() * operand.itemsize % 16 == 0
        and all(size % 16 == 0 for size in operand.shape[-2:])
        and all(stride == 1 or stride % 16 == 0 for stride in operand.stride())
        for operand in operands
    )


def largest_tiles(compute: torch.dtype, precision: str, capability: tuple[int, int], *, aligned: bool = True) -> Tiles:
    """Tiles for products of this arithmetic, if they are large.

    Args:
        compute: type that the operands are multiplied in.
        precision: of FP32 products, one of `PRECISIONS`.
        capability: of the device, such as (9, 0); an unknown newer one is served as the newest known.
        aligned: whether all operands are, as `aligned` says.
    """
    name = arithmetic(compute, precision)
    if not aligned and name in UNALIGNED:
        return UNALIGNED[name]
    known = TABLE[name]
    major, minor = capability
    return known[max((c for c in known if c <= 10 * major + minor), default=min(known))]


def choose_tiles(
    compute: torch.dtype, precision: str, rows: int, columns: int, inner: int, operands: Sequence[Tensor]
) -> Tiles:
    """Tiles for a product `[rows, inner] @ [inner, columns]` of these operands, on the device where they are."""
    capability = capability_of(operands[0].device)
    return largest_tiles(compute, precision, capability, aligned=aligned(*operands)).fitted(rows, columns, inner)


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; 8.0, the oldest served, for any other (the interpreter's)."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def _power_of_two(length: int) -> int:
    return max(16, 1 << (length - 1).bit_length())
