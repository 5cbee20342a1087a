"""The whole method, top to bottom: prepare, then score, choose, edit, measure, decide, hold out.

`truncate` is one round of the search for a truncation, `search_step` that for a step and `search_shrink` that for
singular values; the folder `search/` has a file for each of their parts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lasertri.data.files import SampleSource
from lasertri.edit.comparison import Comparison
from lasertri.edit.truncation import Truncation
from lasertri.errors import NonFiniteGradientError, NotFiniteError
from lasertri.measure.evaluate import evaluate
from lasertri.measure.objective import Objective
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target
from lasertri.result.adaptation import Adaptation
from lasertri.result.card import Made
from lasertri.search.aside import with_side_effects
from lasertri.search.confirmation import Confirmation
from lasertri.search.decision import decide
from lasertri.search.keywords import SettingsKeywords
from lasertri.search.outlook import announce_trials, no_truncation_can_help
from lasertri.search.preflight import preflight
from lasertri.search.problem import Problem, prepare
from lasertri.search.ranking import Promise, promising, ranked
from lasertri.search.round import Round
from lasertri.search.settings import Settings
from lasertri.search.shrink_search import search_shrink
from lasertri.search.step_search import search_step
from lasertri.search.strategies import distinct, fitting
from lasertri.search.trials import run_trials
from lasertri.support.environment import environment
from lasertri.support.options import with_options_of
from lasertri.support.timing import Clock

logger = logging.getLogger(__name__)


@with_options_of(Settings)
def adapt(
    model: nn.Module | str | Path,
    samples: SampleSource | Iterable[Any],
    *,
    held_out: SampleSource | Iterable[Any] | None = None,
    objective: Objective | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    journal: str | Path | None = None,
    resume: bool = True,
    **settings: Unpack[SettingsKeywords],
) -> Adaptation:
    """Find the edit that helps a model most on a task, if any does: by default one step of all its linear layers.

    The model is left as it was, bit for bit; `Adaptation.edit.apply(model)` changes it.

    Args:
        model: a language model (causal, masked or an encoder-decoder), or a hub id or folder to load it from;
             with an objective any module.
        samples: what to adapt to: `Sample`s, rows with the same fields, or a jsonl, csv or parquet file; with an
            objective any objects that its functions take.
        held_out: other samples to report on; by default part of `samples` is held out.
        objective: how samples run, and what is to get better, for a module that is no language model or for
            another aim than the right answer.
        tokenizer: the model's own by default.
        journal: folder in which a search that is killed leaves what it has done, until `Adaptation.save` has written
            the result: called again with the same model, samples and options, it goes on there. An objective's
            functions must be the same, too, and its samples, by nothing but their number and groups.
        resume: where False, it begins anew.
        settings: the options below, such as `blocks=(1, 8)`, `accept="best"` or `seed=1`.

    Raises:
        LasertriError: the input cannot be used; it says why before the long work starts.
    """
    problem = prepare(
        model,
        samples,
        Settings(**settings),  # type: ignore[arg-type]  # a number becomes a tuple
        held_out=held_out,
        objective=objective,
        tokenizer=tokenizer,
        journal=journal,
        resume=resume,
    )
    clock = Clock(problem.journal.now)
    refused = on_held_out = None
    with problem.journal, preserved(problem.model):
        with samples_named(problem):
            preflight(problem)
            rounds = SEARCHES[problem.settings.edit](problem, clock)
        with clock("side effects"):
            rounds = with_side_effects(problem, rounds)
        edits = [found.edit for found in rounds if found.edit is not None]
        with clock("held-out"):
            compare = functools.partial(Comparison.of, problem.model, edits, normalize=problem.settings.normalize)
            on_calibration = compare(  # as in trials
                problem.calibration, may_fail=True, journal=problem.journal.under("calibration")
            )
            try:
                on_held_out = compare(
                    problem.held_out, progress=problem.settings.progress, journal=problem.journal.under("held-out")
                )
            except NotFiniteError as error:  # what was found is not lost for it
                refused = f"no held-out figures: {error}"
                logger.warning(refused)
    return Adaptation(
        model=problem.model,
        tokenizer=problem.tokenizer,
        rounds=rounds,
        calibration=on_calibration,
        held_out=on_held_out,
        refused=refused,
        settings=problem.settings,
        environment=environment(),
        seconds=clock.seconds,
        probe=problem.first.batches()[0],
        asked=problem.asked,
        made=Made(data=Path(samples).name if isinstance(samples, str | Path) else ""),
        journal=problem.journal,
    )


@contextmanager
def samples_named(problem: Problem) -> Iterator[None]:
    """Within, an error about a gradient that is not finite names a sample whose outputs are not, if there is one."""
    try:
        yield
    except NonFiniteGradientError:
        with torch.no_grad():
            for samples in (problem.first, problem.gradients):
                samples.read(problem.model).check()
        raise


def search_truncations(problem: Problem, clock: Clock) -> list[Round]:
    """Round after round, each on the model with the edits before it, until one finds no edit or there are enough."""
    targets, rounds = list(problem.targets), list[Round]()
    with ExitStack() as applied:
        while targets and len(rounds) < problem.settings.max_edits:
            journal = problem.journal.under(f"edit {len(rounds) + 1}") if rounds else problem.journal
            rounds.append(truncate(replace(problem, journal=journal), targets, clock))
            edit = rounds[-1].edit
            if edit is None:
                break
            applied.enter_context(edit.applied(problem.model))
            targets = [target for target in targets if target not in edit.targets]
    return rounds


def truncate(problem: Problem, targets: Sequence[Target], clock: Clock) -> Round:
    """One round: the best edit of one of these targets; the model must be inside `preserved(model)`."""
    model, factors, settings = problem.model, problem.factors, problem.settings
    strategy, ranking, promise = settings.plan, dict.fromkeys(targets, 0.0), Promise()

    # see whether one can help
    with clock("baseline"):
        journal = problem.journal.under("baseline")
        unedited = evaluate(model, problem.calibration, normalize=settings.normalize, journal=journal)
    hopeless = no_truncation_can_help(
        unedited, problem.calibration.groups, settings, confirmed=problem.confirm is not None
    )
    if hopeless is not None:
        return Round.untried(hopeless)
    seconds = clock.last

    # score
    if strategy.gradients is not None:
        ranking, promise = ranked(problem, targets, clock)

    # choose
    requested = list(
        strategy.candidates(
            list(ranking),
            count=settings.count,
            block_counts=settings.blocks,
            ratios=settings.ratios,
            compat=settings.svd == "laser-compat",
        )
    )
    candidates = distinct(fitting(requested))
    if strategy.pairs and promise and settings.race:
        candidates = promising(candidates, promise, strategy.pairs)
    factors.retain(candidate.factors_key for candidate in candidates)
    layers = 1 + max(target.layer for target in problem.targets)
    announce_trials(candidates, layers, problem.calibration, seconds, settings)

    # edit, measure, decide
    with clock("trials"):
        journal = problem.journal.under("trials")
        baseline, trials = run_trials(model, candidates, problem.calibration, factors, settings, journal)
        if baseline.warning:
            logger.warning(baseline.warning)
    with clock("decide"):
        decision = decide(
            trials,
            baseline,
            problem.calibration.groups,
            accept=settings.accept,
            seed=settings.seed,
            confirm=None if problem.confirm is None else functools.partial(Confirmation.of, problem, problem.confirm),
        )

    accepted = decision.accepted
    edit = None if accepted is None else Truncation.build(accepted.candidate, model, factors)
    return Round(ranking, len(requested), trials, decision, edit)


SEARCHES = {"truncate": search_truncations, "step": search_step, "shrink": search_shrink}
