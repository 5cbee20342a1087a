"""What accepted edits do beside the task, and whether that is more than was allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lasertri.edit.edit import all_applied
from lasertri.measure.side_effects import side_effects
from lasertri.search.problem import Problem
from lasertri.search.round import Round


def with_side_effects(problem: Problem, rounds: Sequence[Round]) -> list[Round]:
    """The rounds with their edits' side effects, each measured with the edits before it, against the base model.

    An edit beyond `max_kl` is refused, and with it those that were found on top of it. The model must have none
    of the edits.
    """
    text, most = problem.text, problem.settings.max_kl
    edits = [found.edit for found in rounds if found.edit is not None]
    if text is None or not edits:
        return list(rounds)
    before, measured = text.read(problem.model), list[Round]()
    for number, found in enumerate(rounds, start=1):
        if found.edit is not None:
            with all_applied(edits[:number], problem.model):
                effects = side_effects(before, text.read(problem.model))
            found = replace(found, side_effects=effects)
            if effects.beyond(most):
                reason = f"on neutral text its predictions move by a mean KL of {effects.kl:.3g} nats, above {most:g}"
                return [*measured, replace(found, decision=found.decision.refused(reason), edit=None)]
        measured.append(found)
    return measured
