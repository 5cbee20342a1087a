"""A tensor known by its content."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def weight_sha256(stored: Tensor) -> str:
    """Checksum of a tensor's values, in row-major order."""
    return hashlib.sha256(stored.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()
