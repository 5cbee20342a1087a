"""One launch of a kernel, as data: it can be run, or compiled for a device that is not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from lasertri.ops.kernels.tiles import Tiles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it is called with.

    Attributes:
        kernel: a `triton.jit` function.
        programs: how many run; the grid has one dimension, whose limit is the highest.
        arguments: by name: tensors, and integers that may vary without a new compilation.
        constants: by name, the kernel's `tl.constexpr` parameters.
        result: the argument that it writes.
    """

    kernel: Any
    programs: int
    arguments: Mapping[str, Tensor | int]
    constants: Mapping[str, Any]
    tiles: Tiles
    result: Tensor

    def run(self) -> Tensor:
        """Start it on the current stream of the tensors' own device, and return what it will have written."""
        if self.programs:
            device = self.result.device
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                self.kernel[(self.programs,)](
                    **self.arguments, **self.constants, num_warps=self.tiles.warps, num_stages=self.tiles.stages
                )
        return self.result


def accumulator_type(compute: torch.dtype) -> torch.dtype:
    """FP64 sums for FP64 products, FP32 for all others."""
    return torch.float64 if compute == torch.float64 else torch.float32


def arithmetic_constants(compute: torch.dtype, precision: str) -> dict[str, Any]:
    """What a kernel is told of its arithmetic: the type operands are cast to, that of the sums, and the precision.

    Interpreted, BF16 operands become FP32, which holds them and their products exactly: Triton's interpreter
    multiplies the bit patterns of BF16 (triton-lang/triton#11584).
    """
    operands = torch.float32 if INTERPRETED and compute == torch.bfloat16 else compute
    return {
        "COMPUTE": TRITON_DTYPES[operands],
        "SUM": TRITON_DTYPES[accumulator_type(compute)],
        "PRECISION": precision if compute == torch.float32 else "ieee",
    }
