"""A sample, or an objective's calibration samples, through the whole method: what would fail late fails now."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from lasertri.edit.candidate import Candidate
from lasertri.edit.comparison import Comparison
from lasertri.edit.edit import Edit
from lasertri.errors import LasertriError
from lasertri.factors.store import FactorStore
from lasertri.measure.protocol import Samples
from lasertri.model.targets import Target
from lasertri.ops.finite import all_finite
from lasertri.search.scoring import score_targets
from lasertri.search.trials import measure


def preflight(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    targets: Sequence[Target],
    samples: Samples,
    factors: FactorStore,
    blocks: int,
) -> None:
    """Score, reduce, measure, save, load and apply for the smallest target.

    Raises:
        LasertriError: whatever any of these raises, or a weight is not finite.
    """
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            raise LasertriError(f"expected finite weights, got NaN or Inf in {name}; check the checkpoint")
    target = min(targets, key=lambda t: t.shape[0] * t.shape[1])
    blocks = min(blocks, target.shape[0])
    score_targets(model, [target], samples, block_counts=[blocks], factors=factors)
    candidate = Candidate(target, blocks, 0.5)
    measure(model, [candidate], samples, factors)
    with tempfile.TemporaryDirectory(prefix="lasertri-") as directory:
        # the checkpoint but for its weights
        for part in (getattr(model, "config", None), getattr(model, "generation_config", None), tokenizer):
            if part is not None and hasattr(part, "save_pretrained"):
                part.save_pretrained(directory)
        Edit.build(candidate, model, factors).save(directory)
        Comparison.measure(model, [Edit.load(directory)], samples)
