"""The whole method, top to bottom: split, score, choose targets, measure candidates, decide, hold out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.adaptation import Adaptation
from lasertri.cache import FactorCache
from lasertri.comparison import Comparison
from lasertri.encode import EncodedSamples
from lasertri.environment import environment
from lasertri.factors import FactorStore
from lasertri.models import checkpoint_files, load_model, load_tokenizer
from lasertri.preflight import preflight
from lasertri.preserve import preserved
from lasertri.search import Round, scoring_blocks, search
from lasertri.settings import Settings
from lasertri.targets import find_targets
from lasertri.tasks.files import SampleSource, as_samples
from lasertri.tasks.split import drawn_samples, split_samples, standard_split
from lasertri.timing import Clock


def adapt(
    model: PreTrainedModel | str | Path,
    samples: SampleSource,
    *,
    held_out: SampleSource | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    files: Sequence[Path] = (),
    **settings: Any,
) -> Adaptation:
    """Find the single truncation that helps a model most on a task, if any does.

    The model is left as it was, bit for bit; `Adaptation.edit.apply(model)` changes it.

    Args:
        model: a language model (causal, masked or an encoder-decoder), or a hub id or folder to load it from.
        samples: what to adapt to: `Sample`s, rows with the same fields, or a jsonl, csv or parquet file.
        held_out: other samples to report on; by default part of `samples` is held out.
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
    split = divide(
        as_samples(samples),
        held_out=None if held_out is None else as_samples(held_out),
        held_out_limit=chosen.held_out_limit,
        seed=chosen.seed,
    )
    if isinstance(model, str | Path):
        files, model = checkpoint_files(model), load_model(model)
    if tokenizer is None:
        tokenizer = load_tokenizer(model.config._name_or_path, revision=getattr(model.config, "_commit_hash", None))
    encode = functools.partial(
        EncodedSamples,
        model=model,
        tokenizer=tokenizer,
        delimiter=chosen.delimiter,
        chat=chosen.chat,
        batch_size=chosen.batch_size,
    )
    calibration = gradient_samples = encode(split.calibration)
    if strategy.gradients not in (None, strategy.evaluation):
        gradient_samples = encode(drawn_samples(split.calibration, chosen.calibration, chosen.seed))
    targets = find_targets(model, chosen.targets, roles=strategy.roles)
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
        preflight(model, tokenizer, targets, encode(split.calibration[:1]), factors, max(chosen.blocks))
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
            on_held_out = compare(encode(split.held_out), progress=chosen.progress)
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
