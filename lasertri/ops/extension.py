"""The compiled extension: whether it was built, and loading it when first asked for."""

from __future__ import annotations

import torch


def why_not(device: torch.device) -> str | None:
    """Why the extension cannot run on a device, or None where it can."""
    return "the extension was not built; LASERTRI_BUILD_CUDA=1 pip install --no-build-isolation --no-deps -e ."
