"""One step of the singular values: σ ∂L/∂σ of every layer, sizes across folds, decide."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lasertri.edit.shrink import Shrink
from lasertri.factors.store import Key
from lasertri.model.targets import Target
from lasertri.ops import score_blocks
from lasertri.search.cross_fit import CrossFit
from lasertri.search.outlook import announce_sizes, no_step_can_help
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.search.step_search import averaged, cross_fit, decided, made_of_tokens
from lasertri.search.tokens import Tokens
from lasertri.support.timing import Clock

FIRST_SIZE = 0.5  # predicted decrease, as a share of the loss


def search_shrink(problem: Problem, clock: Clock) -> list[Round]:
    """The best step of all targets' singular values; the model must be inside `preserved(model)`."""
    settings = problem.settings
    blocks = settings.blocks[0] if settings.blocks else 1
    fit = cross_fit(problem, clock)
    hopeless = no_step_can_help(fit.baseline, settings)
    if hopeless is not None:
        return [Round.untried(hopeless)]
    announce_sizes(1, len(problem.calibration), clock.last, settings)
    with clock("factor"):
        problem.factors.prepare([target for target in problem.targets if target.shape[0] >= blocks], blocks)
        keys = problem.factors.usable((target, min(blocks, target.shape[0]), None) for target in problem.targets)
    made = made_of_tokens(problem, fit, ["changes"], functools.partial(_slopes, problem, fit, keys), clock)
    with clock("trials"), tqdm(desc="trials", unit="entry", disable=not settings.progress) as bar:
        fit.advance = bar.update
        each = ({target: change.float() for target, (change,) in own.items()} for own in made["changes"])
        edits = [Shrink(1.0, changes, problem.factors) for changes in each]
        fits = list(fit.sizes(edits, FIRST_SIZE))
        decision = decided(problem, fit, fits)
        edit = None
        if decision.accepted is not None:
            edit = averaged(edits, decision.accepted.candidate.size).known_by(problem.model)
    return [Round({}, len(fits), fits, decision, edit)]


def _slopes(
    problem: Problem, fit: CrossFit, keys: Sequence[Key], _: str, fold: int, tokens: Sequence[Mapping[Target, Tokens]]
) -> tuple[dict[Target, tuple[Tensor]], float]:
    """From all samples but a fold's σ ∂L/∂σ: s − 1 = −η σ ∂L/∂σ lowers the loss by η Σ (σ ∂L/∂σ)² at first order."""
    samples = fit.others(fold)[0]
    slopes, steepness = dict[Target, tuple[Tensor]](), 0.0
    for key in keys:
        target = key[0]
        others = (found for other, found in enumerate(tokens) if other != fold)
        own = sum((found[target] for found in others if target in found), Tokens())
        if not len(own):
            continue
        gradient = torch.cat(own.deltas).float().mT @ torch.cat(own.inputs).float() / len(samples)
        factors = problem.factors.of(*key)
        factors = factors._replace(basis=factors.basis.double())
        weight = target.view(target.parameter(problem.model))
        scores = score_blocks(weight, gradient, factors=factors, backend=problem.factors.backend)
        slopes[target] = (scores.sigma * scores.grad,)
        steepness += float(slopes[target][0].square().sum())
    return slopes, steepness
