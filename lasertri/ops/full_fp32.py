"""FP32 products in FP32: TF32 or BF16 inside them, which a program may allow, would undo the precision asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """Within, torch multiplies FP32 matrices in full precision and casts nothing; afterwards as the program chose."""
    allowed = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        if allowed == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
