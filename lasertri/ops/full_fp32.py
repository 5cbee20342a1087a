"""FP32 products in FP32: TF32 or BF16 inside them, which a program may allow, would undo the precision asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

BACKENDS: Any = torch.backends
MATMULS = BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul
FULL = ("ieee", "none")


@contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """Within, torch multiplies FP32 matrices in full precision and casts nothing; afterwards as the program chose."""
    with torch.autocast(device.type, enabled=False), ExitStack() as stack:
        if hasattr(MATMULS[0], "fp32_precision"):  # these know what either of torch's interfaces has set
            for matmul in MATMULS:
                allowed = matmul.fp32_precision
                if allowed not in FULL:
                    stack.callback(setattr, matmul, "fp32_precision", allowed)
                    matmul.fp32_precision = "ieee"
        elif (precision := torch.get_float32_matmul_precision()) != "highest":  # torch 2.8
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        yield
