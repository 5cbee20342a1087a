"""One step of the singular values: σ ∂L/∂σ of every layer, sizes across folds, decide, make it from all samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from lasertri.edit.shrink import Shrink
from lasertri.ops import score_blocks
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.search.step_search import cross_fit, decided, gather_folds
from lasertri.search.tokens import Tokens
from lasertri.support.timing import Clock

FIRST_SIZE = 0.5  # predicted decrease, as a share of the loss


def search_shrink(problem: Problem, clock: Clock) -> list[Round]:
    """The best step of all targets' singular values; the model must be inside `preserved(model)`."""
    model, store, settings = problem.model, problem.factors, problem.settings
    blocks = settings.blocks[0] if settings.blocks else 1
    parts, tokens = gather_folds(problem, clock)
    with clock("factor"):
        store.prepare(problem.targets, blocks)

    def make(chosen: Sequence[int]) -> Shrink:
        """With s − 1 = −η σ ∂L/∂σ the loss falls by η Σ (σ ∂L/∂σ)² at first order."""
        samples, slopes, decrease = sum(len(parts[fold]) for fold in chosen), {}, 0.0
        for target in problem.targets:
            own = sum((tokens[fold][target] for fold in chosen), Tokens())
            gradient = torch.cat(own.deltas).float().mT @ torch.cat(own.inputs).float() / samples
            factors = store.of(target, min(blocks, target.shape[0]))
            factors = factors._replace(basis=factors.basis.double())
            weight = target.view(target.parameter(model))
            scores = score_blocks(weight, gradient, factors=factors, backend=store.backend)
            slopes[target] = scores.sigma * scores.grad
            decrease += float(slopes[target].square().sum())
        length = fit.loss(chosen) / decrease if decrease > 0 else 0.0
        return Shrink(1.0, {target: (-length * slope).float() for target, slope in slopes.items()}, store)

    with clock("trials"), tqdm(desc="trials", unit="entry", disable=not settings.progress) as bar:
        fit = cross_fit(problem, parts, bar)
        fits = list(fit.sizes(make, FIRST_SIZE))
        decision = decided(problem, fit, fits)

    with clock("edit"):
        edit, accepted = None, decision.accepted
        if accepted is not None:
            edit = make(range(len(parts))).scaled(accepted.candidate.size).known_by(model)
    return [Round({}, len(fits), fits, decision, edit)]
