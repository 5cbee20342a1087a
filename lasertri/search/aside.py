"""What accepted edits do beside the task, and whether that is more than was allowed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from lasertri.edit.edit import all_applied
from lasertri.errors import TooLittleMemoryError
from lasertri.measure.side_effects import side_effects
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.support.memory import memory_told

logger = logging.getLogger(__name__)


def with_side_effects(problem: Problem, rounds: Sequence[Round]) -> list[Round]:
    """The rounds with their edits' side effects, each measured with the edits before it, against the base model.

    An edit beyond `max_kl` is refused, and with it those that were found on top of it. The model must have none
    of the edits.
    """
    text, most = problem.text, problem.settings.max_kl
    edits = [found.edit for found in rounds if found.edit is not None]
    if text is None or not edits:
        return list(rounds)
    measured = list[Round]()
    try:
        with memory_told("side effects on neutral text"):
            before = text.read(problem.model)
            for number, found in enumerate(rounds, start=1):
                if found.edit is not None:
                    with all_applied(edits[:number], problem.model):
                        effects = side_effects(before, text.read(problem.model))
                    found = replace(found, side_effects=effects)
                    if effects.beyond(most):
                        moved = f"its predictions move by a mean KL of {effects.kl:.3g} nats, above {most:g}"
                        return [*measured, _refused(found, f"on neutral text {moved}")]
                measured.append(found)
    except TooLittleMemoryError as error:  # what was found is not lost for it, but where that would break a promise
        found, *others = rounds[len(measured) :]
        if most is not None:
            return [*measured, _refused(found, str(error))]
        logger.warning("not all side effects are known: %s", error)
        return [*measured, found, *others]
    return measured


def _refused(found: Round, reason: str) -> Round:
    return replace(found, decision=found.decision.refused(reason), edit=None)
