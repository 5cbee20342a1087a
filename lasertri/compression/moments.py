"""The second moments of what linear layers are given, from one forward pass of some batches for every group of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lasertri.language.encoding import Batch
from lasertri.model.calls import Call, led
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target
from lasertri.ops.full_fp32 import full_fp32

AT_ONCE = 256  # tokens: a product and its sum cost n² however few they are of


class InputMoments:
    """C = XᵀX of every target's inputs X, made when asked for, for as many targets at once as the memory allows.

    Args:
        targets: whole linear layers, in the order in which they will be asked for.
        batches: without padding.
        normalised: whether what a layer is given of a batch is divided by its largest value, as CorDA's code does.

    Attributes:
        budget: bytes of the moments that are there at once; those of one target are in any case.
    """

    def __init__(
        self, model: nn.Module, targets: Sequence[Target], batches: Sequence[Batch], *, normalised: bool = False
    ) -> None:
        self.model, self.targets, self.batches, self.budget = model, targets, batches, 0
        self.normalised = normalised
        self._kept: dict[Target, Tensor] = {}

    def of(self, target: Target) -> Tensor:
        """C `[n, n]`, FP64; zeros for a layer that does not run."""
        if target not in self._kept:
            self._kept = {}
            self._kept = self._gathered(self._group(target))
        return self._kept[target]

    def _group(self, first: Target) -> list[Target]:
        """This target and those after it that fit."""
        group, free = list[Target](), self.budget
        for target in self.targets[self.targets.index(first) :]:
            free -= 8 * target.shape[1] ** 2
            if group and free < 0:
                break
            group.append(target)
        return group

    @torch.no_grad()
    def _gathered(self, group: Sequence[Target]) -> dict[Target, Tensor]:
        moments = {target: self._zeros(target) for target in group}
        waiting: dict[Target, list[Tensor]] = {target: [] for target in group}
        given: tuple[Tensor, Tensor] | None = None  # what a layer was given, and its tokens
        last: tuple[list[Tensor], Tensor] | None = None  # tokens, and their product

        def add(target: Target, hidden: Tensor, call: Call) -> Tensor:
            nonlocal given
            if given is None or hidden is not given[0]:  # gate and up are given the same, as are q, k and v
                given = hidden, self._tokens(hidden)
            waiting[target].append(given[1])
            if sum(map(len, waiting[target])) >= AT_ONCE:
                multiply(target)
            return call(hidden)

        def multiply(target: Target) -> None:
            nonlocal last
            pieces, waiting[target] = waiting[target], []
            if last is None or [*map(id, pieces)] != [*map(id, last[0])]:
                rows = torch.cat(pieces)
                with full_fp32(rows.device):
                    last = pieces, rows.mT @ rows
            moments[target] += last[1]

        with preserved(self.model), led(self.model, group, add):
            for batch in self.batches:
                batch.log_probs(self.model)
        for target in group:
            if waiting[target]:
                multiply(target)
        return moments

    def _tokens(self, hidden: Tensor) -> Tensor:
        """What a layer was given, `[T, n]` in FP32 or wider; a copy, for the model may go on to change it."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
        return rows / rows.max().abs() if self.normalised else rows

    def _zeros(self, target: Target) -> Tensor:
        columns = target.shape[1]
        return target.parameter(self.model).new_zeros(columns, columns, dtype=torch.float64)
