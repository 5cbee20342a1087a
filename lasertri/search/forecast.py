"""What truncations will do to the loss, foretold from one backward pass in which samples stay apart.

A truncation changes a layer's outputs y_t by e_t, and so at first order the loss of a sample by p_s = Σ_t δ_t·e_t, δ_t
being the gradient at the outputs. The mean loss changes by mean p_s + ½ var p_s. The second term is the curvature by
the covariance of samples' gradients, an empirical Fisher matrix; without it a truncation looks best where it does most
harm, in layers that a few enormous activations pass through.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.measure.evaluate import of_all
from lasertri.measure.protocol import Advance, SampleBatch, Samples
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors
from lasertri.ops.blocks import block_ranks
from lasertri.ops.full_fp32 import full_fp32
from lasertri.search.scoring import Scorer
from lasertri.search.tokens import Taken, batch_tokens
from lasertri.search.trial import by_target
from lasertri.support.journal import NOTHING, Journal, Record
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import Share, everyones, in_each, share, shared, together

TOKENS = 1024  # that are contracted with a target's singular vectors at once


@torch.no_grad()
def forecast(
    model: nn.Module,
    candidates: Sequence[Candidate],
    samples: Samples,
    factors: FactorStore,
    *,
    progress: bool = False,
    journal: Journal = NOTHING,
) -> Tensor:
    """By how much each truncation should lower the mean loss, `[candidates]` in nats; below 0 where it should rise.

    The loss is that of `Samples.loss_batches`. The model must be frozen and in evaluation mode, as inside
    `preserved(model)`.

    Args:
        candidates: of consecutive blocks.
        journal: of this forecast.

    Raises:
        LasertriError: a gradient is NaN or Inf (its layer is named), or none reached a target.
    """
    changes = _Changes(model, candidates, samples, factors, journal)
    with tqdm(total=len(samples), desc="score", unit="sample", disable=not progress) as bar:
        advance, mine = of_all(bar.update), share()
        if not all(in_each(lambda: changes.add_together(mine, advance))):
            bar.reset()
            together(lambda: changes.add_apart(mine, advance))
    each = everyones((changes.of, changes.reached))[: share().of]  # all of it, where each has run all
    changes.of = torch.stack([of for of, _ in each]).sum(dim=0)
    changes.reached = set[Target]().union(*(reached for _, reached in each))
    for columns in shared(range(len(samples)), changes.by_gradients):
        changes.add_columns(columns)
    return -changes.of.mean(dim=1) - 0.5 * changes.of.var(dim=1, correction=0)


class _Changes:
    """What every candidate changes the loss of every sample by, at first order.

    Attributes:
        of: p_s, `[candidates, S]`, FP64 on the CPU.
        reached: targets whose layers told their tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Sequence[Candidate],
        samples: Samples,
        factors: FactorStore,
        journal: Journal = NOTHING,
    ) -> None:
        self.model, self.candidates, self.samples, self.factors = model, candidates, samples, factors
        self.journal = journal
        self.of = torch.zeros(len(candidates), len(samples), dtype=torch.float64)
        self._numbers, self.reached = by_target(candidates), set[Target]()
        self._layers = {target: own for target in self._numbers if (own := target.linear_layer(model)) is not None}

    def add_together(self, share: Share, advance: Advance) -> bool:
        """Take in a share of the batches; False where layers do not tell a batch's rows apart."""
        batches = self.samples.loss_batches(range(len(self.samples))) if self._layers else ()
        for _, record in as_memory_allows(share(batches), self._changed_together):
            if record is None:
                return False
            self._add(record)
            advance(len(record[0]))
        return True

    def add_apart(self, share: Share, advance: Advance) -> None:
        """Take in a share of the samples one by one, in place of what was taken in."""
        self.of.zero_()
        for i in share(range(len(self.samples))):
            batches = self.samples.loss_batches([i])
            for _, record in as_memory_allows(batches, functools.partial(self._changed_apart, i)):
                self._add(record)
            advance(1)

    def by_gradients(self, samples: Sequence[int]) -> dict[int, Tensor]:
        """Of kernels, and layers whose weights another module multiplies with: by one gradient for each of these."""
        targets, mine = self._unreached()
        columns = {}
        for i in samples if targets else ():
            [columns[i]] = self.journal.of(("gradient", i), functools.partial(self._tails, targets, mine, i))
        return columns

    def add_columns(self, columns: Mapping[int, Tensor]) -> None:
        """Take in what `by_gradients` gave."""
        _, mine = self._unreached()
        for i, column in columns.items():
            self.of[mine, i] = column

    def _unreached(self) -> tuple[list[Target], list[int]]:
        """The targets that told no tokens, and their candidates' numbers; an expert may have none."""
        targets = [target for target in self._numbers if target not in self.reached and target.expert is None]
        return targets, [n for target in targets for n in self._numbers[target]]

    def _tails(self, targets: Sequence[Target], mine: Sequence[int], sample: int) -> list[Tensor]:
        """What these candidates of these targets change one sample's loss by."""
        scorer = Scorer(self.model, targets, sorted({self.candidates[n].blocks for n in mine}), self.factors)
        scorer.add(self.samples.loss_batches([sample]))
        changes = []
        for candidate in (self.candidates[n] for n in mine):
            score = scorer.total[candidate.target, candidate.blocks]
            changes.append(-float(score.tail(ratios=candidate.ratio)))
        return [torch.tensor(changes, dtype=torch.float64)]

    def _taken(self, batch: SampleBatch) -> dict[Target, Taken]:
        return batch_tokens(self.model, list(dict.fromkeys(self._layers.values())), batch)

    def _changed_together(self, batch: SampleBatch) -> Record | None:
        """See `_changed`; None where layers do not tell the batch's rows apart."""
        rows, key = self.samples.row_samples(batch), ("together", batch.entry.tolist())
        if rows is None:
            return None
        record = self.journal.recall(key)
        if record is None:
            taken = self._taken(batch)
            if any(own.axis != len(rows) or layer.expert is not None for layer, own in taken.items()):
                return None
            record = self.journal.keep(key, self._changed(taken, rows))
        return record

    def _changed_apart(self, sample: int, batch: SampleBatch) -> Record:
        """See `_changed`; all rows are of one sample."""

        def make() -> list[Tensor]:
            taken = self._taken(batch)
            last = max((int(own.first.max()) for own in taken.values() if len(own.first)), default=0)
            return self._changed(taken, torch.full((last + 1,), sample))

        return self.journal.of(("apart", sample, batch.entry.tolist()), make)

    def _changed(self, taken: Mapping[Target, Taken], rows: Tensor) -> list[Tensor]:
        """The samples of a batch's rows, what every candidate changes their losses by, which targets were reached."""
        samples, place = rows.unique(return_inverse=True)
        changes = torch.zeros(len(self.candidates), len(samples), dtype=torch.float64)
        reached = torch.tensor([layer in taken for layer in self._layers.values()])
        for target, layer in self._layers.items():
            if layer in taken:
                own, mine = taken[layer], self._numbers[target]
                deltas = own.deltas[:, slice(*(target.rows or (None,)))]
                pieces = zip(own.inputs.split(TOKENS), deltas.split(TOKENS), strict=True)
                chosen, weight = [self.candidates[n] for n in mine], target.whole(self.model)
                along = torch.cat([_along(weight, chosen, *piece, self.factors) for piece in pieces], dim=1)
                changes[mine] = changes[mine].index_add(1, place[own.first.cpu()], along)
        return [samples, changes, reached]

    def _add(self, record: Record) -> None:
        """Take in what `_changed` gave."""
        samples, changes, reached = record
        self.of[:, samples] += changes
        self.reached |= {target for target, hit in zip(self._layers, reached.tolist(), strict=True) if hit}


def _along(
    weight: Tensor, candidates: Sequence[Candidate], inputs: Tensor, deltas: Tensor, factors: FactorStore
) -> Tensor:
    """δ_t·e_t of every candidate of one target, of this weight, and every token, `[candidates, T]`, FP64 on the CPU.

    e_t is −Σ uᵢ σᵢ vᵢ·x_t over the singular values that go, so what any rank changes is a sum over the last ones.
    """
    target = candidates[0].target
    wide = torch.promote_types(weight.dtype, torch.float32)
    inputs, deltas = inputs.to(wide), deltas.to(wide)
    along = torch.zeros(len(candidates), len(inputs), dtype=torch.float64)
    for blocks in {candidate.blocks for candidate in candidates}:
        mine = [n for n, candidate in enumerate(candidates) if candidate.blocks == blocks]
        own, projected = factors.of(target, blocks), factors.projected(target, blocks)
        last = F.pad(_contracted(weight, inputs, deltas, own, projected).flip(-1).cumsum(-1), (1, 0))
        kept, _ = block_ranks(own.lengths, None, [candidates[n].ratio for n in mine])
        gone = own.sigma.shape[-1] - torch.tensor(kept, device=last.device)
        along[mine] = -last[:, torch.arange(blocks, device=last.device), gone].sum(-1).mT.double().cpu()
    return along


def _contracted(
    weight: Tensor, inputs: Tensor, deltas: Tensor, factors: BlockFactors, projected: Tensor | None
) -> Tensor:
    """(δ_t·uᵢ) σᵢ (vᵢ·x_t) of every token and every singular value of every block, `[T, K, r]`."""
    rows = [slice(*ends) for ends in itertools.pairwise(factors.partition.offsets)]
    basis = factors.basis.to(inputs.dtype)
    with full_fp32(inputs.device):
        if projected is None:  # U is known, and σᵢ vᵢ·x = uᵢ·A x
            outputs = inputs @ weight.to(inputs.dtype).mT
            sides = [
                [part[:, own] @ u[: own.stop - own.start] for part in (outputs, deltas)]
                for own, u in zip(rows, basis, strict=True)
            ]
        else:  # V is known, and σᵢ uᵢ = A vᵢ
            made = projected.to(inputs.dtype)
            sides = [[inputs @ v, deltas[:, own] @ made[own]] for own, v in zip(rows, basis, strict=True)]
    return torch.stack([left * right for left, right in sides], dim=1)
