"""A step, from one gradient: gather tokens, try directions and sizes across folds, decide."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from lasertri.edit.step import Step
from lasertri.errors import LasertriError
from lasertri.factors.budget import budget_for
from lasertri.model.targets import Target
from lasertri.search.cross_fit import CrossFit, Fit, Sizeable, folds
from lasertri.search.decision import Decision, decide_fit
from lasertri.search.directions import DIRECTIONS, FIRST_SIZE, RANKS, SHORTER, make_step
from lasertri.search.outlook import announce_sizes, no_step_can_help
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.search.settings import Settings
from lasertri.search.tokens import Room, Tokens, gather_tokens
from lasertri.support.timing import Clock

logger = logging.getLogger(__name__)

Edited = TypeVar("Edited", bound=Sizeable)


def search_step(problem: Problem, clock: Clock) -> list[Round]:
    """The best step of all targets; the model must be inside `preserved(model)`."""
    settings = problem.settings
    directions = DIRECTIONS if settings.direction == "auto" else (settings.direction,)
    fit = cross_fit(problem, clock)
    hopeless = no_step_can_help(fit.baseline, settings)
    if hopeless is not None:
        return [Round.untried(hopeless)]
    announce_sizes(len(directions), len(problem.calibration), clock.last, settings)
    tokens = gather_folds(problem, fit.parts, clock)
    with clock("trials"), tqdm(desc="trials", unit="entry", disable=not settings.progress) as bar:
        fit.advance = bar.update
        steps = {d: [_step(fit, tokens, fold, d, settings) for fold in range(len(tokens))] for d in directions}
        tokens.clear()  # they may take as much memory as the model
        fits = _fits(fit, steps)
        decision = decided(problem, fit, fits)
        edit = None
        if decision.accepted is not None:
            chosen = decision.accepted.candidate
            edit = averaged(steps[chosen.direction], chosen.size).known_by(problem.model, merge=settings.merge)
    return [Round({}, len(fits), fits, decision, edit)]


def _fits(fit: CrossFit, steps: Mapping[str, Sequence[Step]]) -> list[Fit]:
    """Sizes of the first direction, then of another as long as it beats what there is."""
    fits: list[Fit] = []
    for direction, made in steps.items():
        if not fits:
            fits = list(fit.sizes(made, FIRST_SIZE[direction]))
        else:
            best = min(fits, key=lambda found: found.loss)
            fits += fit.sizes(made, SHORTER * best.candidate.size, least=best.loss)
    return fits


def _step(
    fit: CrossFit,
    tokens: Sequence[Mapping[Target, Tokens]],
    fold: int,
    direction: str,
    settings: Settings,
) -> Step:
    """A step of size 1 from all samples but a fold's; the mean of all folds' has the rank."""
    others = [own for other, own in enumerate(tokens) if other != fold]
    reached = dict.fromkeys(target for own in others for target in own)
    together = {target: sum((own[target] for own in others if target in own), Tokens()) for target in reached}
    samples, loss = fit.others(fold)
    rank = settings.rank or RANKS[direction]
    each = rank // len(tokens)
    step = make_step(together, direction, rank=each, loss=loss, samples=len(samples), backend=settings.backend)
    return replace(step, rank=each * len(tokens))


def parts_of(problem: Problem) -> list[list[int]]:
    """The calibration samples of every fold."""
    return folds(problem.calibration.strata, problem.calibration.groups, seed=problem.settings.seed)


def gather_folds(problem: Problem, parts: Sequence[Sequence[int]], clock: Clock) -> list[Mapping[Target, Tokens]]:
    """What the samples of every fold ran: one forward and backward pass in all."""
    model, samples, settings = problem.model, problem.calibration, problem.settings
    with clock("gradient"):
        batches = [samples.loss_batches(part) for part in parts]
        longest = max(sum(batch.size for batch in part) for part in batches)
        room = Room.within(budget_for(model, settings.memory_budget), model, problem.targets, longest, len(parts))
        with tqdm(total=sum(map(len, batches)), desc="gradient", disable=not settings.progress) as bar:
            tokens: list[Mapping[Target, Tokens]] = [
                gather_tokens(model, problem.targets, part, room, advance=bar.update) for part in batches
            ]
    if not any(tokens):
        raise LasertriError(
            f"expected tokens for {problem.targets[0]} or another target, got none: no sample sent any to these "
            "experts; bring more samples, or name other targets (--targets)"
        )
    return tokens


def cross_fit(problem: Problem, clock: Clock) -> CrossFit:
    """Read the baseline, which every fold's edit stands beside."""
    samples, settings = problem.calibration, problem.settings
    bar = tqdm(desc="baseline", total=samples.work, unit="entry", disable=not settings.progress)
    with clock("baseline"), torch.no_grad(), bar:
        baseline = samples.read(problem.model, advance=bar.update)
    baseline.check()
    fit = CrossFit(problem.model, samples, parts_of(problem), baseline, settings)
    if fit.baseline.warning:
        logger.warning(fit.baseline.warning)
    return fit


def averaged(edits: Sequence[Edited], size: float) -> Edited:
    """What is kept of edits of size 1, one for each fold."""
    first, *rest = (edit.scaled(size) for edit in edits)
    return first.averaged(rest)


def decided(problem: Problem, fit: CrossFit, fits: Sequence[Fit]) -> Decision[Fit]:
    """The size that wins, and whether it is accepted."""
    settings = problem.settings
    return decide_fit(
        fits, fit.baseline, float(fit.losses.mean()), problem.calibration.groups,
        accept=settings.accept, seed=settings.seed,
    )  # fmt: skip
