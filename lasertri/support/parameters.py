"""Parameters that several modules hold."""

from __future__ import annotations

from collections import Counter

from torch import nn


def parameter_uses(model: nn.Module) -> Counter[int]:
    """In how many places every parameter stands, by its `id`."""
    return Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
