"""Linear layers with quantised weights: no edit is written into one, but a step can stand beside it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lasertri.errors import LasertriError
from lasertri.factored.checkpoint import METHOD
from lasertri.factored.layer import FactoredLinear, Linear
from lasertri.model.forwards import Forward, forwards
from lasertri.ops import DTYPES
from lasertri.support.memory import is_out_of_memory


def quantisation(config: Any) -> str | None:
    """What a configuration says that weights are quantised by; None where they are not, and of factored layers."""
    described = getattr(config, "quantization_config", None)
    if described is None:
        return None
    fields = described if isinstance(described, dict) else vars(described)
    named = "a method that it does not name" if isinstance(described, dict) else type(described).__name__
    method = fields.get("quant_method") or named
    method = getattr(method, "value", method)  # Transformers' own are of an enumeration
    return None if method == METHOD else method


def is_plain(parameter: Tensor) -> bool:
    """Whether its values are simply those of a floating-point tensor.

    bitsandbytes has `Params4bit` and `Int8Params`, parameters of their own types; torchao's tensors and torch's
    `DTensor` are subclasses that report an ordinary dtype.
    """
    return type(parameter) is nn.Parameter and parameter.dtype in DTYPES


def is_quantised(module: nn.Module) -> bool:
    """Whether it is a linear layer that keeps its weight otherwise than as numbers `[outputs, inputs]`.

    An `nn.Linear` whose weight is of another kind (bitsandbytes, torchao, quanto, FP8), or a module of its own with
    integers in place of a weight (GPTQ, AWQ, HQQ).
    """
    if isinstance(module, nn.Linear):
        weight = module._parameters.get("weight")
        return weight is not None and not is_plain(weight) and not hasattr(weight, "device_mesh")  # as a DTensor has
    features = (getattr(module, name, None) for name in ("in_features", "out_features"))
    inputs, outputs = features
    if isinstance(module, FactoredLinear) or type(inputs) is not int or type(outputs) is not int:
        return False
    weight = module._parameters.get("weight")
    if weight is not None and is_plain(weight) and weight.shape == (outputs, inputs):  # its integers are a mask, say
        return False
    own = itertools.chain(module._parameters.values(), module._buffers.values())
    return any(tensor is not None and not tensor.is_floating_point() for tensor in own)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, quantised or not."""
    return isinstance(module, Linear) or is_quantised(module)


def keep_unpacked(model: nn.Module) -> None:
    """Have bitsandbytes leave 4-bit weights as they were loaded.

    On a CPU with AVX-512 BF16 it packs them otherwise when they first run. Then no gradient passes, and what
    bitsandbytes 0.50 makes of them when peft asks for the model's state are other weights.

    Raises:
        LasertriError: it has packed them by now.
    """
    for path, module in model.named_modules():
        own: Any = module
        if not getattr(own, "support_avx512bf16_for_cpu", False):
            continue
        if getattr(getattr(own.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise LasertriError(
                f"expected 4-bit weights as they were loaded, got {path}, which bitsandbytes packed for this CPU when "
                "it ran; load the model again, and adapt it before it runs"
            )
        own.support_avx512bf16_for_cpu = False


def computing_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of what runs through a model with quantised layers: that of its other weights."""
    return next((parameter.dtype for parameter in model.parameters() if is_plain(parameter)), torch.float32)


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """What a tensor of torchao's consists of; any other itself."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
    else:
        for name in flatten()[0]:
            yield from plain_parts(getattr(tensor, name))


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Within, gradients pass through every quantised layer, also where its kernel has no backward pass or a silent one.

    Those made for inference have none: torch then raises, or leaves the gradient out.
    """

    def forward(module: nn.Module) -> Forward:
        def run(own: Forward, /, *arguments: Any, **options: Any) -> Tensor:
            inputs, *others = arguments or [options.pop(next(iter(options)))]  # by position or by name

            def call(given: Tensor) -> Tensor:
                return own(given, *others, **options)

            passes = torch.is_grad_enabled() and inputs.requires_grad
            return _Passed.apply(inputs, module, call) if passes else call(inputs)

        return run

    quantised = {path: forward(module) for path, module in model.named_modules() if is_quantised(module)}
    with forwards(model, quantised):
        yield


class _Passed(torch.autograd.Function):
    """A quantised layer's output; its gradient by the layer's own backward pass, else by what it gives unit vectors."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: nn.Module, call: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.module, ctx.call, ctx.inputs = module, call, inputs.detach().requires_grad_()
        try:
            with torch.enable_grad():
                ctx.output = call(ctx.inputs)
        except RuntimeError as error:  # of a kernel that writes into what has gradients
            if is_out_of_memory(error):
                raise
            ctx.output = call(ctx.inputs.detach())
        return ctx.output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.inputs is None:
            raise LasertriError(
                "expected one backward pass through quantised layers, got a second; run the model again"
            )
        found = _own_gradient(ctx.output, ctx.inputs, delta)
        if found is None:
            weight = _columns(ctx.module, ctx.call, ctx.inputs)
            found = (delta.to(weight.dtype) @ weight.mT).to(ctx.inputs.dtype)
        ctx.inputs = ctx.output = None  # as what other layers save is freed on the way back
        return found, None, None


def _own_gradient(output: Tensor, inputs: Tensor, delta: Tensor) -> Tensor | None:
    """By the kernel's own backward pass, if it has one."""
    if not output.requires_grad:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a kernel without one, which is found here
            return torch.autograd.grad(output, inputs, delta, allow_unused=True)[0]
    except RuntimeError as error:  # which is how torch tells of one
        if is_out_of_memory(error):
            raise
        return None


@torch.no_grad()
def _columns(module: Any, call: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The weight's columns `[n, m]`, without the bias, beside which they might be lost in rounding."""
    bias = getattr(module, "bias", None)
    try:
        if bias is not None:
            module.bias = None
        return call(torch.eye(inputs.shape[-1], dtype=inputs.dtype, device=inputs.device))
    finally:
        if bias is not None:
            module.bias = bias
