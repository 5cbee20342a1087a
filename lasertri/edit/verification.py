"""Whether a model that was read back answers as the one in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lasertri.errors import LasertriError
from lasertri.measure.protocol import SampleBatch
from lasertri.model.preserve import preserved
from lasertri.support.memory import as_memory_allows

CLOSE, CLOSE_IN_HALF = 1e-5, 5e-2  # of log-probabilities, relative to the largest


@torch.no_grad()
def require_same_answers(loaded: nn.Module, model: nn.Module, batch: SampleBatch) -> None:
    """Compare what a model and its copy, which shares its weights, give for a batch, or what memory holds of it.

    Raises:
        LasertriError: it is not the same.
    """
    if loaded is model:
        return

    def both_of(part: SampleBatch) -> tuple[Tensor, Tensor]:
        return part.read(model)[0], part.read(loaded)[0]

    with preserved(model):
        _, (expected, found) = next(as_memory_allows([batch], both_of))
    both = expected.isfinite() & found.isfinite()
    if not both.any():
        return  # what is not finite is named elsewhere
    worst, largest = (float(values[both].abs().max()) for values in (found - expected, expected))
    close = CLOSE if next(model.parameters()).dtype.itemsize >= 4 else CLOSE_IN_HALF
    if worst > close * (1 + largest):
        apart = sorted(loaded.state_dict().keys() ^ model.state_dict().keys())
        raise LasertriError(
            f"expected a model that answers alike when it is loaded again, but it is off by {worst:.2g}: its "
            f"{apart[0] if apart else 'class or a buffer'} is not what its configuration says; change model.config, or "
            "load the model again"
        )
