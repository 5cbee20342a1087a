"""A step, from one gradient: gather tokens, try directions and sizes across folds, decide, make it from all samples."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from tqdm import tqdm

from lasertri.edit.step import Step
from lasertri.model.targets import Target
from lasertri.search.cross_fit import CrossFit, Fit, folds
from lasertri.search.decision import Decision, decide_fit
from lasertri.search.directions import DIRECTIONS, FIRST_SIZE, RANKS, make_step
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.search.tokens import Tokens, gather_tokens, most_tokens
from lasertri.support.timing import Clock


def search_step(problem: Problem, clock: Clock) -> list[Round]:
    """The best step of all targets; the model must be inside `preserved(model)`."""
    settings = problem.settings
    parts, tokens = gather_folds(problem, clock)

    def make(direction: str, chosen: Sequence[int]) -> Step:
        rank, samples = settings.rank or RANKS[direction], sum(len(parts[fold]) for fold in chosen)
        together = {t: sum((tokens[fold][t] for fold in chosen), Tokens()) for t in problem.targets}
        loss = fit.loss(chosen)
        return make_step(together, direction, rank=rank, loss=loss, samples=samples, backend=settings.backend)

    with clock("trials"), tqdm(desc="trials", unit="entry", disable=not settings.progress) as bar:
        fit = cross_fit(problem, parts, bar)
        directions = DIRECTIONS if settings.direction == "auto" else [settings.direction]
        fits = [found for d in directions for found in fit.sizes(functools.partial(make, d), FIRST_SIZE[d])]
        decision = decided(problem, fit, fits)

    with clock("edit"):
        edit, accepted = None, decision.accepted
        if accepted is not None:
            whole = make(accepted.candidate.direction, range(len(parts)))  # the same from all samples
            edit = whole.scaled(accepted.candidate.size).known_by(problem.model, merge=settings.merge)
    return [Round({}, len(fits), fits, decision, edit)]


def gather_folds(problem: Problem, clock: Clock) -> tuple[list[list[int]], list[Mapping[Target, Tokens]]]:
    """Samples of every fold, and what they ran: one forward and backward pass in all."""
    model, samples, settings = problem.model, problem.calibration, problem.settings
    parts = folds(samples.strata, samples.groups, seed=settings.seed)
    with clock("gradient"):
        batches = [samples.loss_batches(part) for part in parts]
        most = most_tokens(model, problem.targets, settings.memory_budget, len(parts))
        with tqdm(total=sum(map(len, batches)), desc="gradient", disable=not settings.progress) as bar:
            tokens: list[Mapping[Target, Tokens]] = [
                gather_tokens(model, problem.targets, part, most=most, advance=bar.update) for part in batches
            ]
    return parts, tokens


def cross_fit(problem: Problem, parts: Sequence[Sequence[int]], bar: tqdm[NoReturn]) -> CrossFit:
    """Read the baseline, which every fold's edit stands beside."""
    with torch.no_grad():
        baseline = problem.calibration.read(problem.model, advance=bar.update)
    baseline.check()
    return CrossFit(problem.model, problem.calibration, parts, baseline, problem.settings, advance=bar.update)


def decided(problem: Problem, fit: CrossFit, fits: Sequence[Fit]) -> Decision[Fit]:
    """The size that wins, and whether it is accepted."""
    settings = problem.settings
    return decide_fit(
        fits, fit.baseline, float(fit.losses.mean()), problem.calibration.groups,
        accept=settings.accept, seed=settings.seed,
    )  # fmt: skip
