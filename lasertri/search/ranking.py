"""Which targets are tried, and which of their candidates: by what a backward pass says of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lasertri.edit.candidate import Candidate
from lasertri.model.targets import Target
from lasertri.search.forecast import forecast
from lasertri.search.problem import Problem
from lasertri.search.scoring import score_targets, scoring_blocks
from lasertri.support.journal import Record
from lasertri.support.sharing import everyones, together
from lasertri.support.timing import Clock

logger = logging.getLogger(__name__)


def ranked(problem: Problem, targets: Sequence[Target], clock: Clock) -> dict[Target, float]:
    """Every target's score, its best over the ratios, highest first; without those that cannot be factored."""
    blocks, ratios = scoring_blocks(targets, problem.settings.scoring_blocks), problem.settings.ratios

    def make() -> list[Tensor]:
        with clock("factor"):
            problem.factors.prepare(targets, blocks)
            keys = together(lambda: problem.factors.usable((target, blocks, None) for target in targets))
        with clock("score"):
            usable = [target for target, *_ in keys]
            numbers = torch.tensor([targets.index(target) for target in usable])
            return [numbers, _scores(problem, usable, blocks)]

    numbers, scores = _record(problem, "score", make)
    best = zip(numbers.tolist(), scores.reshape(-1, len(ratios)).amax(dim=1).tolist(), strict=True)
    return {targets[number]: score for number, score in sorted(best, key=lambda item: -item[1])}


def promising(problem: Problem, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that promise most, each at its own K, as many as a race of the strategy has: elsewhere a ρ may do harm.

    All where they do not race, or nothing is forecast.
    """
    most, settings = problem.settings.plan.most, problem.settings
    if most is None or len(candidates) <= most or not settings.race or settings.score != "fisher":
        return list(candidates)
    [promise] = _record(problem, "promise", lambda: [foretold(problem, candidates, "promise")])
    logger.info("%d of %d candidates are tried: the others promise less", most, len(candidates))
    return [candidates[n] for n in sorted(promise.argsort(descending=True, stable=True)[:most].tolist())]


def factorable(problem: Problem, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those whose targets can be factored, or need not be; a warning tells of the others."""
    keys = [candidate.factors_key for candidate in candidates if not candidate.compat]

    def find() -> list[Tensor]:
        for blocks in dict.fromkeys(blocks for _, blocks, dimension in keys if dimension is None):
            problem.factors.prepare(dict.fromkeys(target for target, own, _ in keys if own == blocks), blocks)
        usable = together(lambda: set(problem.factors.usable(keys)))
        return [torch.tensor([c.compat or c.factors_key in usable for c in candidates])]

    [found] = _record(problem, "factors", find)
    return list(itertools.compress(candidates, found.tolist()))


def _scores(problem: Problem, targets: Sequence[Target], blocks: int) -> Tensor:
    """Of every target at every ratio."""
    model, samples, factors, settings = problem.model, problem.gradients, problem.factors, problem.settings
    if settings.score == "fisher":
        return foretold(
            problem, [Candidate(target, blocks, ratio) for target in targets for ratio in settings.ratios], "score"
        )
    contracted = score_targets(
        model, targets, samples, block_counts=[blocks], factors=factors, progress=settings.progress
    )
    tails = [contracted[target, blocks].tail(ratios=settings.ratios, score=settings.score) for target in targets]
    return torch.stack([tail.cpu() for tail in tails])


def foretold(problem: Problem, candidates: Sequence[Candidate], name: str) -> Tensor:
    """What each should lower the loss by."""
    return forecast(
        problem.model,
        candidates,
        problem.gradients,
        problem.factors,
        progress=problem.settings.progress,
        journal=problem.journal.under(name),
    )


def _record(problem: Problem, name: str, make: Callable[[], Sequence[Tensor]]) -> Record:
    """What the journals of all processes have of this; if one has not, it is made together."""
    record = problem.journal.recall(name)
    if not all(everyones(record is not None)):
        record = None
    return problem.journal.keep(name, make()) if record is None else record
