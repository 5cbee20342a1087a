"""What accepted edits do beside the task, and whether that is more than was allowed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lasertri.edit.edit import Edit, all_applied
from lasertri.errors import TooLittleMemoryError
from lasertri.language.text import EncodedText
from lasertri.measure.side_effects import SideEffects, side_effects
from lasertri.search.problem import Problem
from lasertri.search.round import Round
from lasertri.support.memory import memory_told
from lasertri.support.sharing import once

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
    effects, shortage = once(functools.partial(_effects, problem.model, text, edits, most))
    measured = list[Round]()
    for found in rounds:
        if found.edit is not None:
            if not effects:  # what was found is not lost for it, but where that would break a promise
                if most is not None:
                    return [*measured, _refused(found, str(shortage))]
                logger.warning("not all side effects are known: %s", shortage)
                return [*measured, *rounds[len(measured) :]]
            own = effects.pop(0)
            found = replace(found, side_effects=own)
            if own.beyond(most):
                moved = f"its predictions move by a mean KL of {own.kl:.3g} nats, above {most:g}"
                return [*measured, _refused(found, f"on neutral text {moved}")]
        measured.append(found)
    return measured


def _effects(
    model: nn.Module, text: EncodedText, edits: Sequence[Edit], most: float | None
) -> tuple[list[SideEffects], TooLittleMemoryError | None]:
    """Of every edit with those before it, up to one beyond what is allowed, or for which memory does not do."""
    effects = list[SideEffects]()
    try:
        with memory_told("side effects on neutral text"):
            before = text.read(model)
            for number in range(1, len(edits) + 1):
                with all_applied(edits[:number], model):
                    effects.append(side_effects(before, text.read(model)))
                if effects[-1].beyond(most):
                    break
    except TooLittleMemoryError as error:
        return effects, error
    return effects, None


def _refused(found: Round, reason: str) -> Round:
    return replace(found, decision=found.decision.refused(reason), edit=None)
