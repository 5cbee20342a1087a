"""Faults on purpose: memory for few tokens, operations that find none left, solvers that give up on a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATING = ("mm", "addmm", "bmm", "cat", "mul", "_log_softmax", "index", "_linalg_eigh")


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less")


class Fault(TorchDispatchMode):
    """Within, one operation fails: the n-th of those that take memory; `count` says how many there were."""

    def __init__(self, at: int, error: Callable[[], Exception] = out_of_memory) -> None:
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(self, op: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if op.overloadpacket.__name__ in ALLOCATING:
            self.count += 1
            if self.count == self.at:
                raise self.error()
        return op(*arguments, **(options or {}))


def room_for(model: nn.Module, tokens: float) -> list[int]:
    """Memory that holds so many tokens of a language model at once, padding included, and what was asked for."""
    asked = list[int]()

    def check(_: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
        given = [*arguments[:1], *(options[name] for name in ("input_ids", "decoder_input_ids") if name in options)]
        asked.append(given[0].numel())
        if asked[-1] > tokens:
            raise out_of_memory()

    model.register_forward_pre_hook(check, with_kwargs=True)
    return asked


def give_up_on(monkeypatch: pytest.MonkeyPatch, matrices: Iterable[Tensor], *solvers: str) -> list[str]:
    """Let these solvers of `torch.linalg` not converge on these matrices or their Gram matrices; whom it befell."""
    squares, failed = [float(matrix.double().square().sum()) for matrix in matrices], list[str]()

    def giving_up(name: str, solve: Callable[..., Any]) -> Callable[..., Any]:
        def solved(matrix: Tensor, **options: Any) -> Any:
            own = matrix.diagonal(dim1=-2, dim2=-1) if name == "eigh" else matrix.square().sum(-1)
            if any(torch.isclose(own.sum(-1).double(), torch.tensor(s).double()).any() for s in squares):
                failed.append(name)
                raise torch.linalg.LinAlgError(f"linalg.{name}: the algorithm failed to converge")
            return solve(matrix, **options)

        return solved

    for name in solvers or ("eigh", "svd"):
        monkeypatch.setattr(torch.linalg, name, giving_up(name, getattr(torch.linalg, name)))
    return failed
