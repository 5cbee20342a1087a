"""A step, from one gradient: gather tokens, try directions and sizes across folds, decide."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lasertri.edit.origin import checksums_ahead
from lasertri.edit.step import Step
from lasertri.errors import LasertriError, NotConvergedError
from lasertri.factors.budget import budget_for
from lasertri.measure.evaluate import read_together
from lasertri.model.targets import Target
from lasertri.search.cross_fit import FOLDS, CrossFit, Fit, Sizeable, folds
from lasertri.search.decision import Decision, decide_fit
from lasertri.search.directions import DIRECTIONS, FIRST_SIZE, RANKS, SHORTER, downhill, steepest
from lasertri.search.outlook import announce_sizes, no_step_can_help
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.search.settings import Settings
from lasertri.search.tokens import Room, Tokens, gather_parts
from lasertri.support.journal import Record
from lasertri.support.sharing import everyones, in_all, in_each, together
from lasertri.support.timing import Clock

logger = logging.getLogger(__name__)

Edited = TypeVar("Edited", bound=Sizeable)
Tensors = tuple[Tensor, ...]
Slopes = Mapping[Target, float]
Make = Callable[[str, int, Sequence[Mapping[Target, Tokens]]], tuple[Mapping[Target, Tensors], Slopes]]


def search_step(problem: Problem, clock: Clock) -> list[Round]:
    """The best step of all targets; the model must be inside `preserved(model)`."""
    settings = problem.settings
    directions = DIRECTIONS if settings.direction == "auto" else (settings.direction,)
    fit = cross_fit(problem, clock)
    hopeless = no_step_can_help(fit.baseline, settings)
    if hopeless is not None:
        return [Round.untried(fit.baseline, hopeless).told()]
    announce_sizes(len(directions), len(problem.calibration), clock.last, settings)
    with checksums_ahead(problem.model, problem.targets) as checksums:
        made = made_of_tokens(problem, fit, directions, functools.partial(_steepest, fit, settings), clock)
    with clock("trials"), tqdm(desc="trials", unit="entry", disable=not settings.progress) as bar:
        fit.advance = bar.update
        steps = {direction: [_sized(settings, direction, own) for own in each] for direction, each in made.items()}
        fits = _fits(fit, steps)
        decision = decided(problem, fit, fits)
        edit = None
        if decision.accepted is not None:
            chosen = decision.accepted.candidate
            best = averaged(steps[chosen.direction], chosen.size)
            edit = best.known_by(problem.model, merge=settings.merge, checksums=checksums)
    return [Round(fit.baseline, {}, len(fits), fits, decision, edit).told()]


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


def _steepest(
    fit: CrossFit, settings: Settings, direction: str, fold: int, tokens: Sequence[Mapping[Target, Tokens]]
) -> tuple[Mapping[Target, Tensors], Slopes]:
    """See `steepest`, of all samples but a fold's."""
    others = [own for other, own in enumerate(tokens) if other != fold]
    reached = dict.fromkeys(target for own in others for target in own)
    joined = {target: sum((own[target] for own in others if target in own), Tokens()) for target in reached}
    samples, _ = fit.others(fold)
    rank = (settings.rank or RANKS[direction]) // FOLDS
    return steepest(joined, direction, rank=rank, samples=len(samples), backend=settings.backend)


def _sized(settings: Settings, direction: str, factors: Mapping[Target, Tensors]) -> Step:
    """A fold's step; the mean of all folds' has the rank."""
    rank = (settings.rank or RANKS[direction]) // FOLDS * FOLDS
    return Step(direction, rank, 1.0, {target: (left, right) for target, (left, right) in factors.items()})


def parts_of(problem: Problem) -> list[list[int]]:
    """The calibration samples of every fold."""
    return folds(problem.calibration.strata, problem.calibration.groups, seed=problem.settings.seed)


def made_of_tokens(
    problem: Problem, fit: CrossFit, names: Sequence[str], make: Make, clock: Clock
) -> dict[str, list[dict[Target, Tensors]]]:
    """What each of these names is for every fold, of size 1; no tokens are gathered where the journal has it all.

    Args:
        make: a name, a fold and the tokens of all folds -> tensors of every target, the first of which is to be turned
            and given its length, see `downhill`, and how steep that is.
    """
    journal, pairs = problem.journal.under("steps"), list(itertools.product(names, range(len(fit.parts))))
    with clock("gradient"):
        records = {pair: record for pair in pairs if (record := journal.recall(pair)) is not None}
        lacking = set[tuple[str, int]]().union(*everyones(set(pairs) - records.keys()))
    if lacking:
        tokens = gather_folds(problem, fit.parts, clock)  # they may take as much memory as the model
        with clock("trials"):
            for name, fold in (pair for pair in pairs if pair in lacking):
                factors, slope = _of_all_layers(problem, functools.partial(make, name, fold, tokens))
                made = downhill(factors, slope, fit.others(fold)[1])
                numbers = torch.tensor(list(made), dtype=torch.int64)
                records[name, fold] = journal.keep((name, fold), [numbers, *itertools.chain(*made.values())])
    return {name: [_by_target(problem, records[name, fold]) for fold in range(len(fit.parts))] for name in names}


def _of_all_layers(
    problem: Problem, make: Callable[[], tuple[Mapping[Target, Tensors], Slopes]]
) -> tuple[dict[int, Tensors], float]:
    """What processes made of their layers, by the targets' numbers, and how steep it is in all.

    Raises:
        NotConvergedError: it is of no layer of any process.
    """
    number = {target: i for i, target in enumerate(problem.targets)}

    def mine() -> tuple[dict[int, tuple[Tensors, float]], NotConvergedError | None]:
        try:
            factors, slopes = make()
        except NotConvergedError as error:  # others may have layers that do
            return {}, error
        return {number[t]: (tuple(x.cpu() for x in own), slopes[t]) for t, own in factors.items()}, None

    each = in_each(mine)
    made = dict(sorted((i, own) for theirs, _ in each for i, own in theirs.items()))
    failures = [failure for _, failure in each if failure is not None]
    if failures and not made:
        raise in_all(failures[0])
    return {i: factors for i, (factors, _) in made.items()}, sum(slope for _, slope in made.values())


def _by_target(problem: Problem, record: Record) -> dict[Target, Tensors]:
    """The tensors of every target, on its device, from a record of which targets and of all their tensors."""
    targets, tensors = [problem.targets[number] for number in record[0].tolist()], record[1:]
    each = len(tensors) // max(1, len(targets))
    return {
        target: tuple(x.to(target.device(problem.model)) for x in tensors[each * i : each * (i + 1)])
        for i, target in enumerate(targets)
    }


def gather_folds(problem: Problem, parts: Sequence[Sequence[int]], clock: Clock) -> list[dict[Target, Tokens]]:
    """What the samples of every fold ran: one forward and backward pass in all. Of the layers dealt to this process."""
    model, samples, settings = problem.model, problem.calibration, problem.settings
    with clock("gradient"):
        batches = [samples.loss_batches(part) for part in parts]
        sizes = [sum(batch.size for batch in part) for part in batches]
        budget = min(everyones(budget_for(model, settings.memory_budget)))
        room = Room.within(budget, model, problem.targets, max(sizes), len(parts))
        with tqdm(total=sum(sizes), desc="gradient", disable=not settings.progress) as bar:
            tokens = gather_parts(model, problem.targets, batches, room, advance=bar.update)
    if not any(everyones(any(tokens))):
        raise in_all(
            LasertriError(
                f"expected tokens for {problem.targets[0]} or another target, got none: no sample sent any to these "
                "experts; bring more samples, or name other targets (--targets)"
            )
        )
    return tokens


def cross_fit(problem: Problem, clock: Clock) -> CrossFit:
    """Read the baseline, which every fold's edit stands beside."""
    samples, settings = problem.calibration, problem.settings
    bar = tqdm(desc="baseline", total=samples.work, unit="entry", disable=not settings.progress)
    with clock("baseline"), torch.no_grad(), bar:
        journal = problem.journal.under("baseline")
        baseline = read_together(problem.model, samples, advance=bar.update, journal=journal)
    together(baseline.check)
    journal = problem.journal.under("sizes")
    fit = CrossFit(problem.model, samples, parts_of(problem), baseline, settings, journal=journal)
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
