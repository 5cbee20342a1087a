"""A sample, or an objective's calibration samples, through the whole method: what would fail late fails now."""

from __future__ import annotations

import dataclasses
import tempfile

from lasertri.edit.candidate import Candidate
from lasertri.edit.comparison import Comparison
from lasertri.edit.edit import Edit
from lasertri.errors import LasertriError
from lasertri.ops.finite import all_finite
from lasertri.search.problem import Problem
from lasertri.search.scoring import score_targets
from lasertri.search.trials import run_trials


def preflight(problem: Problem) -> None:
    """Score, reduce, measure, save, load and apply for the smallest target.

    Raises:
        LasertriError: whatever any of these raises, or a weight is not finite.
    """
    model, samples, factors = problem.model, problem.first, problem.factors
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            raise LasertriError(f"expected finite weights, got NaN or Inf in {name}; check the checkpoint")
    target = min(problem.targets, key=lambda t: t.shape[0] * t.shape[1])
    blocks = min(max(problem.settings.blocks), target.shape[0])
    score_targets(model, [target], samples, block_counts=[blocks], factors=factors)
    candidate = Candidate(target, blocks, 0.5)
    run_trials(model, [candidate], samples, factors, dataclasses.replace(problem.settings, progress=False))
    with tempfile.TemporaryDirectory(prefix="lasertri-") as directory:
        # the checkpoint but for its weights
        for part in (getattr(model, "config", None), getattr(model, "generation_config", None), problem.tokenizer):
            if part is not None and hasattr(part, "save_pretrained"):
                part.save_pretrained(directory)
        Edit.build(candidate, model, factors).save(directory)
        Comparison.of(model, [Edit.load(directory)], samples)
