"""Leave a model, and the caller's random state, exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Evaluate a model inside, then restore buffers, `.grad`, `requires_grad`, training modes and random state.

    Parameters are not copied: whoever edits one restores it (see `Edit.applied`).
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(sorted(i for i in devices if i is not None)):
            model.eval()
            for parameter, _, _ in gradients:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for module, name, buffer, original in buffers:
                module._buffers[name] = buffer  # a forward pass may register another (dynamic rotary embeddings)
                buffer.copy_(original)
