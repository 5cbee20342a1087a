"""Calls of linear layers, and of experts that share a parameter, led through a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lasertri.model.forwards import Forward, forwards
from lasertri.model.targets import Target

Call = Callable[[Tensor], Tensor]
Through = Callable[[Target, Tensor, Call], Tensor]

PRODUCTS = ("linear", "matmul", "__matmul__", "bmm")  # by which Transformers' experts multiply, one by one or all


@contextmanager
def led(model: nn.Module, targets: Sequence[Target], through: Through) -> Iterator[None]:
    """Within, these layers and experts return what `through(target, inputs, call)` does; `call(inputs)` is their own.

    Args:
        targets: as of `find_linear_layers`.
    """

    def layer(target: Target) -> Forward:
        def forward(own: Forward, /, *arguments: Any, **options: Any) -> Tensor:
            inputs, *others = arguments or [options.pop(next(iter(options)))]  # by position or by name
            return through(target, inputs, lambda given: own(given, *others, **options))

        return forward

    experts = [target for target in targets if target.expert is not None]
    with ExitStack() as stack:
        stack.enter_context(forwards(model, {t.module: layer(t) for t in targets if t.expert is None}))
        if experts:
            stack.enter_context(_one_by_one(model, experts))
            stack.enter_context(_Experts(model, experts, through))
        yield


class _Experts(TorchFunctionMode):
    """Notices products with an expert's matrix: no module of its own makes them."""

    def __init__(self, model: nn.Module, targets: Sequence[Target], through: Through) -> None:
        super().__init__()
        self.matrices = {target.part(target.parameter(model)).data_ptr(): target for target in targets}
        self.stacks = {target.parameter(model).data_ptr() for target in targets}
        self.through = through

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if getattr(function, "__name__", None) not in PRODUCTS or len(arguments) < 2:
            return function(*arguments, **options)
        inputs, weight, *bias = arguments
        if weight.dim() == 3 and weight.data_ptr() in self.stacks:
            pairs = zip(inputs, weight, strict=True)
            return torch.stack([self.__torch_function__(torch.matmul, types, pair) for pair in pairs])
        target = self.matrices.get(weight.data_ptr()) if weight.dim() == 2 else None
        if target is None:
            return function(*arguments, **options)
        return self.through(target, inputs, lambda given: function(given, weight, *bias, **options))


@contextmanager
def _one_by_one(model: nn.Module, experts: Sequence[Target]) -> Iterator[None]:
    """Within, Transformers multiplies with one expert after the other; its kernels copy or sort the matrices first."""
    modules = [model.get_submodule(path) for path in {target.module for target in experts}]
    configs: list[Any] = [module.config for module in modules if hasattr(module, "has_gate")]  # those have the choice
    before = [config._experts_implementation for config in configs]
    try:
        for config in configs:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._experts_implementation = own
