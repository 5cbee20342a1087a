"""∂L/∂σ of every target from one backward pass, streamed: no two gradients exist at once.

L is the negative log-likelihood of the right answers, summed over their tokens, or an `Objective`'s loss; averaged
over samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lasertri.errors import LasertriError, NonFiniteGradientError
from lasertri.factors.store import FactorStore
from lasertri.measure.evaluate import of_all
from lasertri.measure.protocol import Advance, SampleBatch, Samples
from lasertri.model.forwards import forwards, fused_activations
from lasertri.model.parallel import whole
from lasertri.model.targets import Target
from lasertri.ops import BlockScores, score_blocks
from lasertri.ops.finite import all_finite
from lasertri.search.tokens import non_finite_gradient
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import shared

FP16_LOSS_SCALES = (2.0**12, 2.0**6)  # gradients of an fp16 model underflow without; tried before none at all

BLOCKS, MOST_BLOCKS = 8, 32  # up to which benchmarks/bench_edits.py has found no other decisions
LONGEST = 1024

Scores = dict[tuple[Target, int], BlockScores]


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
    batches = samples.gold_batches()
    work = sum(batch.size for batch in batches) * len(targets)
    with tqdm(total=work, desc="score", disable=not progress) as bar:
        scorer = Scorer(model, targets, block_counts, factors, advance=of_all(bar.update))

        def add(mine: Sequence[SampleBatch]) -> Scores:
            scorer.add(mine)
            return {key: BlockScores(x.sigma.cpu(), x.grad.cpu(), x.lengths) for key, x in scorer.total.items()}

        total: Scores = {}
        for scores in shared(batches, add):
            _accumulate(total, scores)
    return {key: BlockScores(x.sigma, x.grad / len(samples), x.lengths) for key, x in total.items()}


def _accumulate(total: Scores, scores: Scores) -> None:
    """Add those of other samples."""
    for key, new in scores.items():
        old = total.get(key)
        total[key] = new if old is None else BlockScores(old.sigma, old.grad + new.grad, old.lengths)


class Scorer:
    """Adds up the scores of micro-batches, one gradient at a time.

    Args:
        advance: is told how many targets were scored, times the size of their batch.

    Attributes:
        total: of the batches added so far, summed over their samples.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        block_counts: Sequence[int],
        factors: FactorStore,
        *,
        advance: Advance = lambda _: None,
    ) -> None:
        self.model, self.targets, self.block_counts, self.factors = model, targets, block_counts, factors
        self.total: Scores = {}
        half = any(target.parameter(model).dtype == torch.float16 for target in targets)
        self._larger_scales = FP16_LOSS_SCALES if half else ()
        self._advance, self._before, self._done = advance, 0, 0

    def add(self, batches: Sequence[SampleBatch]) -> None:
        """Add the scores of batches, of fewer samples each where memory does not hold so many."""
        for batch, scores in as_memory_allows(batches, self._scaled):
            _accumulate(self.total, scores)
            self._before += batch.size * len(self.targets)

    def _scaled(self, batch: SampleBatch) -> Scores:
        """Of one batch; an fp16 model's loss is scaled as far up as its gradients stay finite."""
        for scale in self._larger_scales:
            with suppress(NonFiniteGradientError):
                return self._scores(batch, scale)
        return self._scores(batch, 1.0)

    def _scores(self, batch: SampleBatch, scale: float) -> Scores:
        """Of the batch's loss, by a backward pass of `scale` times it."""
        scores: Scores = {}
        contract = functools.partial(self._contract, scores, scale, batch.size)
        with (
            forwards(self.model, fused_activations(self.model)),
            _gradients_streamed(self.model, self.targets, contract),
            torch.enable_grad(),
        ):
            loss = batch.loss(self.model)
            if loss.requires_grad:
                (scale * loss).backward()
        reached = {target for target, _ in scores}
        missing = [target.name for target in self.targets if target not in reached]
        if missing:
            raise LasertriError(
                f"expected a gradient for every target, none reached {missing[0]}; it is offloaded, frozen or not "
                "used by the forward pass, or the loss is detached from it"
            )
        return scores

    def _contract(self, scores: Scores, scale: float, size: int, target: Target, gradient: Tensor) -> None:
        """Put a target's scores to those of its batch."""
        gradient = target.view(whole(gradient))
        if not all_finite(gradient):
            raise non_finite_gradient(f"for {target.name}", gradient.dtype)
        weight = target.whole(self.model)
        for blocks in (blocks for blocks in self.block_counts if blocks <= target.shape[0]):
            known = self.factors.of(target, blocks)
            sigma, slope = score_blocks(weight, gradient, factors=known, backend=self.factors.backend)
            scores[target, blocks] = BlockScores(sigma, slope / scale, known.lengths)
        # counted from where this batch began: under another scale, or in parts, it begins again
        done = self._before + size * len({scored for scored, _ in scores})
        self._advance(done - self._done)
        self._done = done


def scoring_blocks(targets: Sequence[Target], wanted: int | None) -> int:
    """The K that targets are ranked at: the one wanted, or less where a target has fewer rows.

    By default `BLOCKS`, doubled until no block's short side is longer than `LONGEST`, at most to `MOST_BLOCKS`:
    eigenproblems of large models would take most of the time, and in twice as many blocks they cost a quarter.
    """
    shapes = {target.shape for target in targets}
    if wanted is None:
        wanted = BLOCKS
        while wanted < MOST_BLOCKS and any(min(-(-rows // wanted), columns) > LONGEST for rows, columns in shapes):
            wanted *= 2
    return min(wanted, *(rows for rows, _ in shapes))


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
            stack.callback(setattr, parameter, "grad", None)  # a backward pass that failed may leave one
            handle = parameter.register_post_accumulate_grad_hook(functools.partial(take, mine))
            stack.callback(handle.remove)
        yield
