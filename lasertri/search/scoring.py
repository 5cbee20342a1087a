"""∂L/∂σ of every target from one backward pass, streamed: no two gradients exist at once.

L is the negative log-likelihood of the right answers, summed over their tokens, or an `Objective`'s loss; averaged
over samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lasertri.errors import LasertriError
from lasertri.factors.store import FactorStore
from lasertri.measure.protocol import SampleBatch, Samples
from lasertri.model.forwards import forwards, fused_activations
from lasertri.model.targets import Target
from lasertri.ops import BlockScores, score_blocks
from lasertri.ops.finite import all_finite

FP16_LOSS_SCALES = (2.0**12, 2.0**6)  # gradients of an fp16 model underflow without; tried before none at all

Scores = dict[tuple[Target, int], BlockScores]


class _NonFiniteGradientError(LasertriError):
    """Raised on the way out of a backward pass."""


def score_targets(
    model: nn.Module,
    targets: Sequence[Target],
    samples: Samples,
    *,
    block_counts: Sequence[int],
    factors: FactorStore,
    progress: bool = False,
) -> Scores:
    """Singular values and ∂L/∂σ of every target at every number of blocks K.

    Each gradient is contracted to ∂L/∂σ and freed as soon as the backward pass has made it; the contraction is
    linear in the gradient, so micro-batches add up in FP64.

    The model must be frozen and in evaluation mode, as inside `preserved(model)`.

    Raises:
        LasertriError: a gradient is NaN or Inf (its parameter is named), or a target got none.
    """
    scores: Scores = {}
    batches = samples.gold_batches()
    with tqdm(total=len(batches) * len(targets), desc="score", disable=not progress) as bar:
        for batch in batches:
            for key, new in _batch_scores(model, targets, batch, block_counts, factors, bar).items():
                old = scores.get(key)
                scores[key] = new if old is None else BlockScores(old.sigma, old.grad + new.grad, old.lengths)
    return {key: BlockScores(score.sigma, score.grad / len(samples), score.lengths) for key, score in scores.items()}


def _batch_scores(
    model: nn.Module,
    targets: Sequence[Target],
    batch: SampleBatch,
    block_counts: Sequence[int],
    factors: FactorStore,
    bar: tqdm[NoReturn],
) -> Scores:
    """Scores of the summed loss of one micro-batch; an fp16 model's loss is scaled as far up as it goes."""

    def scaled(scale: float) -> Scores:
        scores: Scores = {}

        def contract(target: Target, gradient: Tensor) -> None:
            gradient = target.view(gradient)
            if not all_finite(gradient):
                raise _NonFiniteGradientError(
                    f"the gradient of {target.name} has NaN or Inf; check the model on one sample, or load it "
                    "in float32"
                )
            weight = target.view(target.parameter(model))
            for blocks in block_counts:
                known = factors.of(target, blocks)
                known = known._replace(basis=known.basis.double())
                sigma, slope = score_blocks(weight, gradient, factors=known, backend=factors.backend)
                scores[target, blocks] = BlockScores(sigma, slope / scale, known.lengths)
            bar.update()

        with forwards(model, fused_activations(model)), _gradients_streamed(model, targets, contract):
            loss = batch.loss(model)
            if loss.requires_grad:
                (scale * loss).backward()
        missing = [target.name for target in targets if (target, block_counts[0]) not in scores]
        if missing:
            raise LasertriError(
                f"expected a gradient for every target, none reached {missing[0]}; it is offloaded, frozen or not "
                "used by the forward pass, or the loss is detached from it"
            )
        return scores

    before = bar.n
    for scale in FP16_LOSS_SCALES if any(target.parameter(model).dtype == torch.float16 for target in targets) else ():
        with suppress(_NonFiniteGradientError):
            return scaled(scale)
        bar.n = before
    return scaled(1.0)


@contextmanager
def _gradients_streamed(
    model: nn.Module, targets: Sequence[Target], consume: Callable[[Target, Tensor], None]
) -> Iterator[None]:
    """Within, a backward pass hands every parameter's gradient to `consume` when it is complete, then frees it.

    Once for each target that is a part of it.
    """
    parts: dict[str, list[Target]] = {}
    for target in targets:
        parts.setdefault(target.name, []).append(target)

    def take(mine: Sequence[Target], parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            for target in mine:
                consume(target, gradient)

    with ExitStack() as stack:
        for name, mine in parts.items():
            parameter = model.get_parameter(name)
            if parameter._post_accumulate_grad_hooks:
                raise LasertriError(
                    f"expected {name} without post-accumulate-grad hooks, which would run while it is scored; "
                    "remove them (an optimizer in the backward pass?) and register them again afterwards"
                )
            parameter.requires_grad_(True)
            stack.callback(parameter.requires_grad_, False)
            handle = parameter.register_post_accumulate_grad_hook(functools.partial(take, mine))
            stack.callback(handle.remove)
        yield
