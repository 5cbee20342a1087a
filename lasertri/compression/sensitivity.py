"""What an error at a layer's outputs costs, from the gradients that a text gives them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lasertri.language.encoding import Batch
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target
from lasertri.search.tokens import batch_tokens


def output_sensitivity(model: nn.Module, targets: Sequence[Target], batches: Sequence[Batch]) -> dict[Target, float]:
    """For every layer the mean of (∂L/∂y)² over its outputs y, up to a factor that all have in common.

    A change Δy of the outputs raises the loss at second order by about half of Σ (∂L/∂y · Δy)² (the empirical Fisher
    matrix), so that ‖Δy‖² times this figure compares between layers. It is 0 of a layer that the text does not reach.
    """
    squares = dict.fromkeys(targets, 0.0)
    with preserved(model):
        for batch in batches:
            for target, own in batch_tokens(model, targets, batch).items():
                squares[target] += float(own.deltas.double().square().sum())
    return {target: total / target.shape[0] for target, total in squares.items()}
