"""Which targets are tried, and which of their candidates: by what one backward pass says of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lasertri.edit.candidate import Candidate
from lasertri.model.targets import Target
from lasertri.search.forecast import forecast
from lasertri.search.problem import Problem
from lasertri.search.scoring import score_targets, scoring_blocks
from lasertri.support.sharing import everyones, together
from lasertri.support.timing import Clock

logger = logging.getLogger(__name__)

Promise = dict[tuple[Target, float], float]  # by target and ρ: what a candidate should lower the loss by


def ranked(problem: Problem, targets: Sequence[Target], clock: Clock) -> tuple[dict[Target, float], Promise]:
    """Every target's score, its best over the ratios, highest first; and that of each ratio, where it is a forecast.

    Without those that cannot be factored.
    """
    blocks, ratios = scoring_blocks(targets, problem.settings.scoring_blocks), problem.settings.ratios
    with clock("score"):
        record = problem.journal.recall("score")
        if not all(everyones(record is not None)):  # it is made together
            record = None
    if record is None:
        with clock("factor"):
            problem.factors.prepare(targets, blocks)
            keys = together(lambda: problem.factors.usable((target, blocks, None) for target in targets))
        with clock("score"):
            usable = [target for target, *_ in keys]
            numbers = torch.tensor([targets.index(target) for target in usable])
            record = problem.journal.keep("score", [numbers, _scores(problem, usable, blocks)])
    scored = [targets[number] for number in record[0].tolist()]
    each = dict(zip(itertools.product(scored, ratios), record[1].flatten().tolist(), strict=True))
    scores = {target: max(each[target, ratio] for ratio in ratios) for target in scored}
    ranking = dict(sorted(scores.items(), key=lambda item: -item[1]))
    return ranking, each if problem.settings.score == "fisher" else Promise()


def _scores(problem: Problem, targets: Sequence[Target], blocks: int) -> Tensor:
    """Of every target at every ratio."""
    model, samples, factors, settings = problem.model, problem.gradients, problem.factors, problem.settings
    if settings.score == "fisher":
        grid = [Candidate(target, blocks, ratio) for target in targets for ratio in settings.ratios]
        batches = problem.journal.under("score")
        return forecast(model, grid, samples, factors, progress=settings.progress, journal=batches)
    contracted = score_targets(
        model, targets, samples, block_counts=[blocks], factors=factors, progress=settings.progress
    )
    tails = [contracted[target, blocks].tail(ratios=settings.ratios, score=settings.score) for target in targets]
    return torch.stack([tail.cpu() for tail in tails])


def factorable(problem: Problem, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those whose targets can be factored, or need not be; a warning tells of the others."""

    def find() -> list[Tensor]:
        keys = (candidate.factors_key for candidate in candidates if not candidate.compat)
        usable = set(problem.factors.usable(keys))
        return [torch.tensor([c.compat or c.factors_key in usable for c in candidates])]

    [found] = problem.journal.of("factors", find)
    return list(itertools.compress(candidates, found.tolist()))


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
