"""A sample, or an objective's calibration samples, through the whole method: what would fail late fails now."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

import torch

from lasertri.edit.candidate import Candidate
from lasertri.edit.comparison import Comparison
from lasertri.edit.edit import Edit
from lasertri.edit.origin import Origin
from lasertri.edit.shrink import Shrink
from lasertri.edit.truncation import Truncation
from lasertri.edit.verification import require_same_answers
from lasertri.errors import LasertriError, NotConvergedError
from lasertri.model.checkpoint import rebuilt
from lasertri.model.parallel import here, is_sharded, mesh_of
from lasertri.model.quantised import is_plain
from lasertri.model.targets import Target
from lasertri.ops.finite import all_finite
from lasertri.search.directions import make_step
from lasertri.search.problem import Problem
from lasertri.search.scoring import score_targets
from lasertri.search.tokens import FEWEST_TOKENS, Room, gather_tokens
from lasertri.search.trials import run_trials
from lasertri.support.scratch import scratch_folder


def preflight(problem: Problem) -> None:
    """Score, edit, measure, save, load and apply for the smallest target.

    Raises:
        LasertriError: whatever any of these raises, or a weight is not finite.
    """
    model = problem.model
    for name, parameter in model.named_parameters():
        if (is_plain(parameter) or is_sharded(parameter)) and not all_finite(here(parameter)):
            raise LasertriError(f"expected finite weights, got NaN or Inf in {name}; check the checkpoint")
    edit = TRIES[problem.settings.edit](problem)
    as_checkpoint = (edit.dense or problem.settings.merge) and mesh_of(model) is None
    again = rebuilt(model, problem.tokenizer, whole=as_checkpoint)
    require_same_answers(again, model, problem.first.batches()[0])
    with scratch_folder() as directory:
        if edit.dense or importlib.util.find_spec("peft"):
            edit.save(directory)
            edit.check(model, directory, problem.first.batches()[0])
            edit = Edit.load(directory)
    Comparison.of(model, [edit], problem.first)


def _size(target: Target) -> int:
    return target.shape[0] * target.shape[1]


def _factored(problem: Problem, blocks: int) -> tuple[Target, int]:
    """The smallest target that can be factored in at most so many blocks, and in how many it is."""
    for target in sorted(problem.targets, key=_size):
        key = target, min(blocks, target.shape[0]), None
        try:
            problem.factors.of(*key)
        except NotConvergedError as error:
            failure = error
        else:
            return key[:2]
    raise failure


def _truncation(problem: Problem) -> Edit:
    model, samples, factors = problem.model, problem.first, problem.factors
    target, blocks = _factored(problem, max(problem.settings.blocks))
    score_targets(model, [target], samples, block_counts=[blocks], factors=factors)
    candidate = Candidate(target, blocks, 0.5)
    run_trials(model, [candidate], samples, factors, dataclasses.replace(problem.settings, progress=False))
    return Truncation.build(candidate, model, factors)


def _step(problem: Problem) -> Edit:
    """Of the smallest layer that a gradient reaches: some have their weights read by kernels of the layer around."""
    batches = problem.first.loss_batches(range(len(problem.first)))
    tokens = gather_tokens(problem.model, problem.targets, batches, Room(FEWEST_TOKENS))
    smallest = min(tokens or problem.targets, key=_size)  # experts may have none of this sample
    tried = {target.expert is None: target for target in sorted(tokens, key=_size, reverse=True)}  # and an expert
    step = make_step({t: tokens[t] for t in tried.values()}, "plain", rank=1, loss=1.0, samples=1)
    if not step.factors:  # a first token has no use for queries, which is all that a prompt may be
        rows, columns = smallest.shape
        step = dataclasses.replace(step, factors={smallest: (torch.zeros(rows, 1), torch.zeros(1, columns))})
    return dataclasses.replace(step, origin=Origin.of(problem.model, step.factors, base=""))


def _shrink(problem: Problem) -> Edit:
    _step(problem)
    target, _ = _factored(problem, 1)
    sigma = problem.factors.of(target, 1).sigma
    origin = Origin.of(problem.model, [target], base="")
    return Shrink(1.0, {target: torch.zeros_like(sigma, dtype=torch.float32)}, origin=origin)


TRIES: dict[str, Callable[[Problem], Edit]] = {"truncate": _truncation, "step": _step, "shrink": _shrink}
