"""The product's own edits, by the code that `adapt` runs, and the control that a reader wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.edits.case import Case, Outcome, objective, outcome
from benchmarks.edits.rows import Row
from lasertri import Sample
from lasertri.edit.step import Step
from lasertri.factors.budget import budget_for
from lasertri.factors.store import FactorStore
from lasertri.method import SEARCHES
from lasertri.model.architectures import MLP_ROLES
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_linear_layers, find_targets
from lasertri.search.directions import make_step
from lasertri.search.problem import Problem
from lasertri.search.scoring import scoring_blocks
from lasertri.search.settings import Settings
from lasertri.search.step_search import averaged, gather_folds, parts_of
from lasertri.support.timing import Clock


def edit(**options: Any) -> Callable[[Case], Row]:
    """The search that these options of `adapt` ask for, and its edit held out, if one was accepted."""

    def run(case: Case) -> Row:
        problem, clock = as_problem(case, Settings(seed=case.seed, progress=False, **options)), Clock()
        with preserved(case.model):
            [found, *_] = SEARCHES[problem.settings.edit](problem, clock)
            after, control = case.baseline, None
            with clock("held-out"):
                if found.edit is not None:
                    with found.edit.applied(case.model):
                        after = outcome(case.model, case.held_out)
            if isinstance(found.edit, Step) and case.seed == 0:
                with clock("control"):
                    control = _control(case, problem, found.edit)
        result = found.to_dict()
        chosen = result["edit"] or result["rejected"] or {}
        return {
            "objective": objective(case.calibration),
            "accepted": found.edit is not None,
            "chosen": {name: chosen[name] for name in CHOSEN if name in chosen},
            "held_out": case.compared(after),
            "control": None if control is None else case.compared(control),
            "p_value": result["p_value"],
            "reason": result["reason"],
            "trials": [
                {name: trial[name] for name in (*CHOSEN, "accuracy", "log_loss", "loss") if name in trial}
                for trial in result["trials"]
            ],
            "seconds": clock.seconds,
            "forward_equivalents": _forwards(problem, len(result["trials"])),
        }

    return run


CHOSEN = ("kind", "direction", "rank", "size", "target", "blocks", "rho")


def as_problem(case: Case, settings: Settings) -> Problem:
    truncate = settings.edit == "truncate"
    if truncate:
        targets = find_targets(case.model, settings.targets)
    else:
        targets = find_linear_layers(case.model, settings.targets, roles=MLP_ROLES)
    counts = [*settings.blocks, scoring_blocks(targets, settings.scoring_blocks)] if truncate else [1]
    store = FactorStore(case.model, targets, counts, budget=budget_for(case.model, settings.memory_budget))
    calibration = case.calibration
    return Problem(
        case.model, case.tokenizer, targets, calibration, calibration, None, case.held_out, calibration, store, settings
    )


def _control(case: Case, problem: Problem, step: Step) -> Outcome:
    """The same step made from shuffled answers: what the form and the frequencies of the answers alone would give."""
    shuffled = case.encoded(_shuffled(case.split.calibration, case.seed))
    mixed = dataclasses.replace(problem, calibration=shuffled)
    parts = parts_of(mixed)
    tokens = gather_folds(mixed, parts, Clock())
    loss, rank = outcome(case.model, case.calibration).loss, step.rank // len(parts)
    made = [
        make_step(own, step.direction, rank=rank, loss=loss, samples=len(part))
        for part, own in zip(parts, tokens, strict=True)
    ]
    with averaged(made, step.size).beside(case.model):
        return outcome(case.model, case.held_out)


def _shuffled(samples: list[Sample], seed: int) -> list[Sample]:
    """Each with another's answer: its completion, or the place of its right choice."""
    order = np.random.default_rng(seed).permutation(len(samples))
    others = [samples[i] for i in order]
    if samples[0].choices:
        return [dataclasses.replace(s, label=o.gold % len(s.choices)) for s, o in zip(samples, others, strict=True)]
    return [dataclasses.replace(s, completion=o.completion) for s, o in zip(samples, others, strict=True)]


def _forwards(problem: Problem, trials: int) -> float | None:
    """Forward passes of the calibration samples: 1 forward, 1 backward through activations, the baseline, the sizes.

    A truncation's trials run a part of the model each, in races: theirs are not counted.
    """
    return None if problem.settings.edit == "truncate" else 3.0 + trials
