"""The whole method, top to bottom: split, score, choose targets, measure candidates, decide, hold out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from lasertri.data.files import SampleSource, as_samples
from lasertri.data.sample import group_names
from lasertri.data.split import drawn_samples, split_samples, standard_split
from lasertri.edit.comparison import Comparison
from lasertri.errors import LasertriError
from lasertri.factors.cache import FactorCache
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.measure.objective import Objective, ObjectiveSamples, own_samples
from lasertri.measure.protocol import Samples
from lasertri.model.architectures import output_head
from lasertri.model.loading import checkpoint_files, load_model, load_tokenizer
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.result.adaptation import Adaptation
from lasertri.search.preflight import preflight
from lasertri.search.round import Round, scoring_blocks, search
from lasertri.search.settings import Settings
from lasertri.support.environment import environment
from lasertri.support.timing import Clock


def adapt(
    model: nn.Module | str | Path,
    samples: SampleSource | Iterable[Any],
    *,
    held_out: SampleSource | Iterable[Any] | None = None,
    objective: Objective | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    files: Sequence[Path] = (),
    **settings: Any,
) -> Adaptation:
    """Find the single truncation that helps a model most on a task, if any does.

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
        files: the checkpoint files that `model` was loaded from and still equals, if that is known: their checksums are
            remembered beside the factors.
        settings: fields of `Settings`, such as `blocks=(1, 8)`, `accept="best"` or `seed=1`.

    Raises:
        LasertriError: the input cannot be used; it says why before the long work starts.
    """
    chosen, clock = Settings(**settings), Clock()
    strategy = chosen.plan
    if strategy.evaluation == "standard":
        divide = standard_split
    else:
        divide = functools.partial(split_samples, calibration=chosen.calibration)
    listed: Callable[[Any], list[Any]] = as_samples if objective is None else own_samples
    split = divide(
        listed(samples),
        held_out=None if held_out is None else listed(held_out),
        held_out_limit=chosen.held_out_limit,
        seed=chosen.seed,
        group_names=group_names if objective is None else objective.groups,
    )
    if isinstance(model, str | Path):
        name = model
        model, files = load_model(name), checkpoint_files(name)  # which are there once it is loaded
    encode: Callable[[list[Any]], Samples]
    if objective is not None:
        encode = functools.partial(ObjectiveSamples, objective=objective, batch_size=chosen.batch_size)
    else:
        language: Any = model
        if not hasattr(language, "config") or output_head(language) is None:
            raise LasertriError(
                f"expected a language model of transformers, got a {type(model).__name__}; say with "
                "objective=Objective(forward, loss, score) what any other module is for"
            )
        if tokenizer is None:
            tokenizer = load_tokenizer(
                language.config._name_or_path, revision=getattr(language.config, "_commit_hash", None)
            )
        encode = functools.partial(
            EncodedSamples,
            model=language,
            tokenizer=tokenizer,
            delimiter=chosen.delimiter,
            chat=chosen.chat,
            batch_size=chosen.batch_size,
        )
    calibration, held_out_samples = encode(split.calibration), encode(split.held_out)
    gradient_samples = calibration
    if strategy.gradients not in (None, strategy.evaluation):
        gradient_samples = encode(drawn_samples(split.calibration, chosen.calibration, chosen.seed))
    targets = find_targets(model, chosen.targets, roles=strategy.roles)
    rows = max(target.shape[0] for target in targets)
    if min(chosen.blocks) > rows:
        raise LasertriError(
            f"expected a number of blocks K of at most {rows}, the rows of a target, got {list(chosen.blocks)}"
        )
    factors = FactorStore(
        model,
        targets,
        [*chosen.blocks, scoring_blocks(targets, chosen)],
        budget=chosen.memory_budget,
        backend=chosen.backend,
        cache=FactorCache.default(),
        files=files,
    )

    rounds: list[Round] = []
    with preserved(model):
        first = encode(split.calibration[:1]) if objective is None else calibration
        preflight(model, tokenizer, targets, first, factors, max(chosen.blocks))
        with contextlib.ExitStack() as applied:
            while len(rounds) < chosen.max_edits and targets:
                found = search(model, targets, gradient_samples, calibration, factors, chosen, clock)
                rounds.append(found)
                if found.edit is None:
                    break
                applied.enter_context(found.edit.applied(model))
                targets = [target for target in targets if target != found.edit.candidate.target]
        edits = [found.edit for found in rounds if found.edit is not None]
        with clock("held-out"):
            compare = functools.partial(Comparison.measure, model, edits, normalize=chosen.normalize)
            on_calibration = compare(calibration)
            on_held_out = compare(held_out_samples, progress=chosen.progress)
    return Adaptation(
        model=model,
        tokenizer=tokenizer,
        rounds=rounds,
        calibration=on_calibration,
        held_out=on_held_out,
        settings=chosen,
        environment=environment(),
        seconds=clock.seconds,
    )
