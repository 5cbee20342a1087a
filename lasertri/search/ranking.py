"""Which targets are tried, and which of their candidates: by what one backward pass says of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from lasertri.edit.candidate import Candidate
from lasertri.model.targets import Target
from lasertri.search.forecast import forecast
from lasertri.search.problem import Problem
from lasertri.search.scoring import score_targets, scoring_blocks

logger = logging.getLogger(__name__)

Promise = dict[tuple[Target, float], float]  # by target and ρ: what a candidate should lower the loss by


def ranked(problem: Problem, targets: Sequence[Target]) -> tuple[dict[Target, float], Promise]:
    """Every target's score, its best over the ratios, highest first; and that of each ratio, where it is a forecast."""
    model, factors, settings = problem.model, problem.factors, problem.settings
    blocks, ratios = scoring_blocks(targets, settings.scoring_blocks), settings.ratios
    promise, scores = Promise(), dict[Target, float]()
    if settings.score == "fisher":
        grid = [Candidate(target, blocks, ratio) for target in targets for ratio in ratios]
        found = forecast(model, grid, problem.gradients, factors, progress=settings.progress).tolist()
        promise = {(candidate.target, candidate.ratio): nats for candidate, nats in zip(grid, found, strict=True)}
        scores = {target: max(promise[target, ratio] for ratio in ratios) for target in targets}
    else:
        contracted = score_targets(
            model, targets, problem.gradients, block_counts=[blocks], factors=factors, progress=settings.progress
        )
        scores = {
            target: float(score.tail(ratios=ratios, score=settings.score).max())
            for (target, _), score in contracted.items()
        }
    return dict(sorted(scores.items(), key=lambda item: -item[1])), promise


def promising(
    candidates: Sequence[Candidate], promise: Mapping[tuple[Target, float], float], most: int
) -> list[Candidate]:
    """Those of the targets and ratios that promise most, at whatever K."""
    pairs = list(dict.fromkeys((candidate.target, candidate.ratio) for candidate in candidates))
    kept = set(sorted(pairs, key=lambda pair: -promise[pair])[:most])
    chosen = [candidate for candidate in candidates if (candidate.target, candidate.ratio) in kept]
    if len(chosen) < len(candidates):
        logger.info("%d of %d candidates are tried: the others promise less", len(chosen), len(candidates))
    return chosen
