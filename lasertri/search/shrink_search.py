"""One step of singular values, of weights or of what an adapter adds: σ ∂L/∂σ, sizes across folds, decide."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lasertri.edit.refinement import Refinement, Spectra
from lasertri.edit.shrink import Shrink
from lasertri.model.targets import Target
from lasertri.ops import score_blocks
from lasertri.search.cross_fit import CrossFit
from lasertri.search.outlook import announce_sizes, no_step_can_help
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.search.step_search import averaged, cross_fit, decided, made_of_tokens
from lasertri.search.tokens import Tokens, weight_gradient
from lasertri.support.sharing import together
from lasertri.support.timing import Clock

FIRST_SIZE = 0.5  # predicted decrease, as a share of the loss
FIRST_REFINEMENT = 0.0625  # training has left an adapter's values little to gain


Slope = Callable[[Target, Tokens], Tensor | None]


def search_shrink(problem: Problem, clock: Clock) -> list[Round]:
    """The best step of all targets' singular values; the model must be inside `preserved(model)`."""
    blocks = problem.settings.blocks[0] if problem.settings.blocks else 1

    def slope(target: Target, tokens: Tokens) -> Tensor | None:
        if not len(tokens) and target.shards(problem.model) is None:
            return None
        factors, weight = problem.factors.of(target, min(blocks, target.shape[0])), target.whole(problem.model)
        if not len(tokens):  # they are another process's, which gathers the weight with this one
            return None
        gradient = weight_gradient(torch.cat(tokens.deltas), torch.cat(tokens.inputs))
        factors = factors._replace(basis=factors.basis.double())
        scores = score_blocks(weight, gradient, factors=factors, backend=problem.factors.backend)
        return scores.sigma * scores.grad

    def factored() -> list[Target]:
        problem.factors.prepare([target for target in problem.targets if target.shape[0] >= blocks], blocks)
        keys = [(target, min(blocks, target.shape[0]), None) for target in problem.targets]
        return [target for target, *_ in together(lambda: problem.factors.usable(keys))]

    found = search_values(
        problem, clock, slope, lambda changes: Shrink(1.0, changes, problem.factors), prepare=factored
    )
    edit = found.edit.known_by(problem.model) if isinstance(found.edit, Shrink) else None
    return [replace(found, edit=edit)]


def search_refinement(problem: Problem, clock: Clock, spectra: Spectra) -> list[Round]:
    """The best step of the singular values of what an adapter adds, which stands beside the model."""
    slope = functools.partial(slope_of_adapter, spectra)
    found = search_values(
        problem, clock, slope, lambda changes: Refinement(1.0, changes, spectra=spectra), first=FIRST_REFINEMENT
    )
    return [found]


def slope_of_adapter(spectra: Spectra, target: Target, tokens: Tokens) -> Tensor | None:
    """σ ∂L/∂σ of what an adapter adds to a layer: σᵢ Σ (Δ uᵢ)(X vᵢ) over the tokens."""
    if not len(tokens):
        return None
    u, sigma, vh = (side.float() for side in spectra[target])
    return sigma * ((torch.cat(tokens.deltas).float() @ u) * (torch.cat(tokens.inputs).float() @ vh.mT)).sum(dim=0)


def search_values(
    problem: Problem,
    clock: Clock,
    slope: Slope,
    make: Callable[[Mapping[Target, Tensor]], Shrink],
    *,
    first: float = FIRST_SIZE,
    prepare: Callable[[], Sequence[Target]] | None = None,
) -> Round:
    """Sizes across folds of one step of singular values, decided.

    Args:
        slope: σ ∂L/∂σ of a target's values, summed over the samples of these tokens; None without any.
        make: the edit of size 1 from the changes s − 1.
        first: the size that is tried first.
        prepare: what takes long before the first slope; it says which targets have one. By default all.
    """
    settings, fit = problem.settings, cross_fit(problem, clock)
    hopeless = no_step_can_help(fit.baseline, settings)
    if hopeless is not None:
        return Round.untried(fit.baseline, hopeless).told()
    announce_sizes(1, len(problem.calibration), clock.last, settings)
    with clock("factor"):
        targets = problem.targets if prepare is None else prepare()
    made = made_of_tokens(problem, fit, ["changes"], functools.partial(_slopes, fit, targets, slope), clock)
    with clock("trials"), tqdm(desc="trials", unit="entry", disable=not settings.progress) as bar:
        fit.advance = bar.update
        edits = [make({target: change.float() for target, (change,) in own.items()}) for own in made["changes"]]
        fits = list(fit.sizes(edits, first))
        decision = decided(problem, fit, fits)
    accepted = decision.accepted
    edit = None if accepted is None else averaged(edits, accepted.candidate.size)
    return Round(fit.baseline, {}, len(fits), fits, decision, edit).told()


def _slopes(
    fit: CrossFit,
    targets: Sequence[Target],
    slope: Slope,
    _: str,
    fold: int,
    tokens: Sequence[Mapping[Target, Tokens]],
) -> tuple[dict[Target, tuple[Tensor]], dict[Target, float]]:
    """From all samples but a fold's σ ∂L/∂σ: s − 1 = −η σ ∂L/∂σ lowers the loss by η Σ (σ ∂L/∂σ)² at first order."""
    samples = fit.others(fold)[0]
    slopes, steepness = dict[Target, tuple[Tensor]](), dict[Target, float]()
    for target in targets:
        others = (found for other, found in enumerate(tokens) if other != fold)
        own = sum((found[target] for found in others if target in found), Tokens())
        steep = slope(target, own)
        if steep is None:
            continue
        slopes[target] = (steep / len(samples),)
        steepness[target] = float(slopes[target][0].square().sum())
    return slopes, steepness
