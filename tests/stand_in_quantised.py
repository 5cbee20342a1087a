"""Quantised linear layers as libraries make them, in plain torch: packed, scaled, with kernels of several manners."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, delta):
        raise NotImplementedError("no backward pass")


class _Silent(_Raising):
    @staticmethod
    def backward(ctx, delta):
        return None, None, None


def _in_place(x, weight, bias):
    return nn.functional.linear(x.add_(0), weight, bias)  # which a leaf that has gradients refuses


KERNELS = {
    "its own": nn.functional.linear,
    "no graph": torch.no_grad()(nn.functional.linear),
    "raises": _Raising.apply,
    "silent": _Silent.apply,
    "in place": _in_place,
}


class Int8Linear(nn.Linear):
    """As bitsandbytes has it: a Linear whose weight are integers, here all in one column, with scales beside."""

    def __init__(self, linear: nn.Linear, kernel: str = "its own") -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8).view(-1, 1), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
        self.kernel = kernel

    def dequantised(self) -> Tensor:
        return self.weight.view(self.out_features, self.in_features) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return KERNELS[self.kernel](x, self.dequantised(), self.bias)


def quantise(model: nn.Module, *, kernel: str = "its own", plain: bool = False) -> nn.Module:
    """Quantise every linear layer but the head, in place.

    Args:
        plain: give the layers themselves what the quantised ones would multiply by.
    """
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not model.get_output_embeddings():
            made = Int8Linear(module, kernel)
            if plain:
                module.weight.data = made.dequantised()
            else:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, made)
    return model
