"""One sample through the whole method, so that what would fail late fails now."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.comparison import Comparison
from lasertri.edit import Edit
from lasertri.encode import EncodedSamples
from lasertri.errors import LasertriError
from lasertri.factors import FactorStore
from lasertri.ops.finite import all_finite
from lasertri.score import score_targets
from lasertri.strategies import Candidate
from lasertri.targets import Target
from lasertri.trial import measure


def preflight(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    targets: Sequence[Target],
    sample: EncodedSamples,
    factors: FactorStore,
    blocks: int,
) -> None:
    """Score, reduce, measure, save, load and apply for the smallest target.

    Raises:
        LasertriError: whatever any of these raises, or a weight is not finite.
    """
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            raise LasertriError(f"expected finite weights, came NaN or Inf in {name}; check the checkpoint")
    target = min(targets, key=lambda t: t.shape[0] * t.shape[1])
    score_targets(model, [target], sample, block_counts=[blocks], factors=factors)
    candidate = Candidate(target, blocks, 0.5)
    measure(model, [candidate], sample, factors)
    with tempfile.TemporaryDirectory(prefix="lasertri-") as directory:
        for part in (model.config, getattr(model, "generation_config", None), tokenizer):  # all but the weights
            if part is not None:
                part.save_pretrained(directory)
        Edit.build(candidate, model, factors).save(directory)
        Comparison.measure(model, [Edit.load(directory)], sample)
