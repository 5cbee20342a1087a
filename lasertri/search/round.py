"""One round of the search: score the targets, choose, measure candidates, decide."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lasertri.edit.edit import Edit
from lasertri.factors.store import FactorStore
from lasertri.measure.protocol import Samples
from lasertri.model.targets import Target
from lasertri.search.decision import Decision, decide
from lasertri.search.scoring import score_targets
from lasertri.search.settings import Settings
from lasertri.search.strategies import distinct, target_scores
from lasertri.search.trials import Trial, measure
from lasertri.support.timing import Clock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """What one round found.

    Attributes:
        ranking: score of every target, highest first, in nats of predicted decrease ("taylor"); 0 where all are tried.
        requested: number of candidates asked for; some are the same edit.
        trials: every measured candidate.
        decision: the accepted or the best rejected trial, and the joint test.
        edit: the accepted edit, or None.
    """

    ranking: dict[Target, float] = field(repr=False)
    requested: int
    trials: Sequence[Trial] = field(repr=False)
    decision: Decision
    edit: Edit | None

    def to_dict(self) -> dict[str, Any]:
        """Everything that was measured, ready for JSON."""
        accepted, rejected = self.decision.accepted, self.decision.rejected
        return {
            "edit": None if accepted is None else accepted.candidate.to_dict(),
            "rejected": None if rejected is None else rejected.to_dict(),
            "p_value": self.decision.p_value,
            "reason": self.decision.reason,
            "candidates": {
                "requested": self.requested,
                "distinct": len({trial.candidate.effect for trial in self.trials}),
                "measured": len(self.trials),
                "finished": sum(trial.finished for trial in self.trials),
            },
            "scores": [
                {"target": str(target), "layer": target.layer, "role": target.role, "score": score}
                for target, score in self.ranking.items()
            ],
            "trials": [trial.to_dict() for trial in self.trials],
        }


def search(
    model: nn.Module,
    targets: Sequence[Target],
    gradient_samples: Samples,
    samples: Samples,
    factors: FactorStore,
    settings: Settings,
    clock: Clock,
) -> Round:
    """Find the best single edit of these targets; the model must be inside `preserved(model)`."""
    strategy, ranking = settings.plan, dict.fromkeys(targets, 0.0)
    if strategy.gradients is not None:
        blocks = scoring_blocks(targets, settings)
        with clock("factor"):
            factors.prepare(targets, blocks)
        with clock("score"):
            scores = score_targets(
                model, targets, gradient_samples, block_counts=[blocks], factors=factors, progress=settings.progress
            )
            ranking = target_scores(scores, settings.ratios, settings.score)
    requested = list(
        strategy.candidates(
            list(ranking),
            count=settings.count,
            block_counts=settings.blocks,
            ratios=settings.ratios,
            compat=settings.svd == "laser-compat",
        )
    )
    fitting = [candidate for candidate in requested if candidate.blocks <= candidate.target.shape[0]]
    if len(fitting) < len(requested):
        logger.warning("%d candidates are left out: they have more blocks than rows", len(requested) - len(fitting))
    factors.retain(candidate.factors for candidate in fitting)
    with clock("trials"):
        baseline, trials = measure(
            model,
            distinct(fitting),
            samples,
            factors,
            normalize=settings.normalize,
            race=settings.race,
            accept=settings.accept,
            seed=settings.seed,
            progress=settings.progress,
        )
        decision = decide(trials, baseline, samples.groups, accept=settings.accept, seed=settings.seed)
    edit = None
    if decision.accepted is not None:
        edit = Edit.build(decision.accepted.candidate, model, factors)
    return Round(ranking, len(requested), trials, decision, edit)


def scoring_blocks(targets: Sequence[Target], settings: Settings) -> int:
    """The K that targets are ranked at, which every target has rows for."""
    return min(settings.scoring_blocks, *(target.shape[0] for target in targets))
