"""The whole method, top to bottom: prepare, then score, choose, edit, measure, decide, hold out.

`truncate` is one round of the search for a truncation, `search_step` that for a step and `search_shrink` that for
singular values; the folder `search/` has a file for each of their parts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedTokenizerBase

from lasertri.data.files import SampleSource
from lasertri.edit.adapter import how_far_off, require_peft
from lasertri.edit.comparison import Comparison
from lasertri.edit.flips import Flips
from lasertri.edit.refinement import Refinement, adapter_of_others, spectra_of
from lasertri.edit.truncation import Truncation
from lasertri.errors import (
    LasertriError,
    NonFiniteGradientError,
    NotFiniteError,
    ProcessLostError,
    TooLittleMemoryError,
)
from lasertri.measure.evaluate import evaluate
from lasertri.measure.objective import Objective
from lasertri.model.parallel import WHOLE, mesh_of
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
from lasertri.search.ranking import factorable, promising, ranked
from lasertri.search.round import Round
from lasertri.search.settings import Settings
from lasertri.search.shrink_search import search_refinement, search_shrink
from lasertri.search.step_search import search_step
from lasertri.search.strategies import distinct, fitting
from lasertri.search.tokens import batch_tokens
from lasertri.search.trials import run_trials
from lasertri.support.environment import environment
from lasertri.support.events import Listener, tell, told_to
from lasertri.support.memory import as_memory_allows, memory_told
from lasertri.support.options import with_options_of
from lasertri.support.sharing import in_all, number, once, require_alike, shared_by, together
from lasertri.support.shown import shown
from lasertri.support.timing import Clock

logger = logging.getLogger(__name__)


@with_options_of(Settings)
@memory_told()
def adapt(
    model: nn.Module | str | Path,
    samples: SampleSource | Iterable[Any],
    *,
    held_out: SampleSource | Iterable[Any] | None = None,
    objective: Objective | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    journal: str | Path | None = None,
    resume: bool = True,
    group: ProcessGroup | None = None,
    callback: Listener | None = None,
    **settings: Unpack[SettingsKeywords],
) -> Adaptation:
    """Find the edit that helps a model most on a task, if any does: by default one step of all its MLPs.

    The model is left as it was, bit for bit; `Adaptation.edit.apply(model)` changes it.

    Args:
        model: a language model (causal, masked or an encoder-decoder), or a hub id or folder to load it from;
             with an objective any module. Of one that tensor parallelism spreads over processes (`tp_plan`) every
             process holds a part, and calls this function with the same arguments.
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
        group: of `torch.distributed`, by gloo: its processes share the work. Each calls this function with the same
            arguments, its model on its own device, and gets the same result, for the first to save.
        callback: is called, in the first process, with a dictionary for every event: a phase begins, a trial is
            measured, a round decided, the result there. Its `event` says which.
        settings: the options below, such as `blocks=(1, 8)`, `accept="best"` or `seed=1`.

    Raises:
        LasertriError: the input cannot be used; it says why before the long work starts.
    """
    if callback is not None and not callable(callback):
        raise LasertriError(f"expected a function of one event as callback, got {shown(callback)}")
    mesh = mesh_of(model) if isinstance(model, nn.Module) else None
    if mesh is not None and group is not None:
        raise LasertriError(
            "expected no group for a model that tensor parallelism spreads over processes, which are one "
            "by that; leave it out"
        )
    with shared_by(group if mesh is None else mesh.get_group(), sharded=mesh is not None):
        with mistakes_alike(mesh is not None):
            problem = together(
                lambda: prepare(
                    model,
                    samples,
                    Settings(**settings),  # type: ignore[arg-type]  # a number becomes a tuple
                    held_out=held_out,
                    objective=objective,
                    tokenizer=tokenizer,
                    journal=journal,
                    resume=resume,
                )
            )
        require_alike("model, samples and options", lambda: problem.content)
        with problem.journal, preserved(problem.model):
            with samples_named(problem):
                once(lambda: preflight(problem))
            with told_to(callback if number() == 0 else None):
                found = _found(problem, SEARCHES[problem.settings.edit], _name(samples))
                try:
                    tell("result", found.to_dict)
                except Exception:  # what was found is not lost for it
                    logger.warning("the callback failed at the result", exc_info=True)
            return found


def refine(
    adapter: str | Path,
    samples: SampleSource | Iterable[Any],
    *,
    model: nn.Module | str | Path,
    held_out: SampleSource | Iterable[Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **settings: Unpack[SettingsKeywords],
) -> Adaptation:
    """Move the singular values of what a LoRA adapter adds against their gradients, if that helps (arXiv 2603.03995).

    It is the step of `edit="shrink"`, sized and tested alike, of the adapter's own ΔW. What is found is an adapter of
    the same rank; the baseline that it is measured against has the adapter as it was.

    Args:
        adapter: a folder that peft wrote.
        samples, held_out, tokenizer: as for `adapt`.
        model: the adapter's base.
        settings: options of `adapt`, but for those of a kind of edit and for `targets`.

    Raises:
        LasertriError: the input cannot be used, or the adapter is no LoRA of linear layers alone.
    """
    require_peft()
    if isinstance(model, nn.Module) and mesh_of(model) is not None:
        raise LasertriError(
            f"expected a whole model to refine an adapter of, got one that tensor parallelism spreads over processes; "
            f"{WHOLE}"
        )
    if others := sorted({"edit", "targets", "blocks"} & settings.keys()):
        raise LasertriError(
            f"expected no {' or '.join(others)} for a refinement, which is of the adapter's own layers; leave it out"
        )
    problem = prepare(
        model,
        samples,
        Settings(edit="shrink", **settings),  # type: ignore[arg-type, misc]
        held_out=held_out,
        tokenizer=tokenizer,
    )
    model, folder = problem.model, Path(adapter)
    given = adapter_of_others(model, folder)
    spectra = spectra_of(given)
    problem = replace(problem, targets=given.targets)
    with preserved(model):
        with given.beside(model), torch.no_grad():
            expected, _ = problem.first.batches()[0].read(model)
        off = how_far_off(model, folder, expected, problem.first.batches()[0])
        if off:
            raise LasertriError(
                f"{folder}: expected a plain LoRA adapter, but peft adds more than its factors to this model (off by "
                f"{off:.2g}); take one without DoRA, biases and trained embeddings"
            )
        with given.beside(model):
            found = _found(problem, functools.partial(search_refinement, spectra=spectra), _name(samples))
    rounds = [
        replace(each, edit=each.edit.adapter(model)) if isinstance(each.edit, Refinement) else each
        for each in found.rounds
    ]
    return replace(found, rounds=rounds)


@contextmanager
def mistakes_alike(alike: bool) -> Iterator[None]:
    """Within, what is wrong with the input is wrong in all processes, which need not tell each other, if it is so."""
    try:
        yield
    except ProcessLostError:
        raise
    except LasertriError as error:
        if alike:
            in_all(error)
        raise


def _found(problem: Problem, search: Callable[[Problem, Clock], list[Round]], data: str) -> Adaptation:
    """Search, measure; the model must be inside `preserved(model)`."""
    clock = Clock(problem.journal.now)
    refused = on_held_out = None
    with samples_named(problem):
        rounds = search(problem, clock)
    with clock("side effects"):
        rounds = with_side_effects(problem, rounds)
    with clock("spectra"):
        rounds = [found.with_spectra(problem.model) for found in rounds]
    edits = [found.edit for found in rounds if found.edit is not None]
    with clock("held-out"):
        compare = functools.partial(Comparison.of, problem.model, edits, normalize=problem.settings.normalize)
        on_calibration = compare(
            problem.calibration,
            baseline=rounds[0].baseline,
            may_fail=True,  # as in trials
            journal=problem.journal.under("calibration"),
        )
        try:
            with memory_told("the samples held out"):
                on_held_out = compare(
                    problem.held_out, progress=problem.settings.progress, journal=problem.journal.under("held-out")
                )
        except (NotFiniteError, TooLittleMemoryError) as error:  # what was found is not lost for it
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
        probe=problem.first.batches()[0] if mesh_of(problem.model) is None else None,  # which the first has alone
        asked=problem.asked,
        files=problem.files,
        samples=problem.held_out,
        flips=None if on_held_out is None else Flips.both_ways(on_held_out, problem.held_out),
        made=Made(data=data),
        journal=problem.journal,
    )


def _name(samples: object) -> str:
    """What they are called, where they come from a file."""
    return Path(samples).name if isinstance(samples, str | Path) else ""


@contextmanager
def samples_named(problem: Problem) -> Iterator[None]:
    """Within, an error about a gradient that is not finite names a sample whose outputs are not, if there is one.

    Else it names the layer after which the gradient is not, as far as one of the targets shows it.
    """
    try:
        yield
    except NonFiniteGradientError:
        model, layers = problem.model, (target.linear_layer(problem.model) for target in problem.targets)
        find = functools.partial(batch_tokens, model, list(dict.fromkeys(own for own in layers if own is not None)))
        for samples in (problem.first, problem.gradients):
            with torch.no_grad():
                samples.read(model).check()
            for _ in as_memory_allows(samples.loss_batches(range(len(samples))), find):
                pass
        raise


def search_truncations(problem: Problem, clock: Clock) -> list[Round]:
    """Round after round, each on the model with the edits before it, until one finds no edit or there are enough."""
    targets, rounds = list(problem.targets), list[Round]()
    with ExitStack() as applied:
        while targets and len(rounds) < problem.settings.max_edits:
            journal = problem.journal.under(f"edit {len(rounds) + 1}") if rounds else problem.journal
            rounds.append(truncate(replace(problem, journal=journal), targets, clock).told())
            edit = rounds[-1].edit
            if edit is None:
                break
            applied.enter_context(edit.applied(problem.model))
            targets = [target for target in targets if target not in edit.targets]
    return rounds


def truncate(problem: Problem, targets: Sequence[Target], clock: Clock) -> Round:
    """One round: the best edit of one of these targets; the model must be inside `preserved(model)`."""
    model, factors, settings = problem.model, problem.factors, problem.settings
    strategy, ranking = settings.plan, dict.fromkeys(targets, 0.0)

    # see whether one can help
    with clock("baseline"):
        journal = problem.journal.under("baseline")
        unedited = evaluate(model, problem.calibration, normalize=settings.normalize, journal=journal)
    hopeless = no_truncation_can_help(
        unedited, problem.calibration.groups, settings, confirmed=problem.confirm is not None
    )
    if hopeless is not None:
        return Round.untried(unedited, hopeless)
    seconds = clock.last

    # score
    if strategy.gradients is not None:
        ranking = ranked(problem, targets, clock)

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
    different = distinct(fitting(requested))
    factors.retain(candidate.factors_key for candidate in different)
    with clock("factor"):
        candidates = factorable(problem, different)
    with clock("score"):
        candidates = promising(problem, candidates)
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
    return Round(unedited, ranking, len(requested), trials, decision, edit, len(different))


SEARCHES = {"truncate": search_truncations, "step": search_step, "shrink": search_shrink}
