"""`Problem`: what `adapt` was asked, with every input made ready; past this no raw samples and no names are seen."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from packaging.version import Version
from torch import nn
from transformers import PreTrainedTokenizerBase

from lasertri.data.files import SampleSource, as_samples
from lasertri.data.neutral import neutral_text
from lasertri.data.sample import files_of, group_names
from lasertri.data.split import Split, drawn_samples, split_samples, standard_split
from lasertri.edit.adapter import loadable
from lasertri.errors import LasertriError
from lasertri.factors.budget import budget_for
from lasertri.factors.cache import FactorCache
from lasertri.factors.journals import open_journal
from lasertri.factors.store import FactorStore
from lasertri.language.asking import Asked
from lasertri.language.samples import EncodedSamples
from lasertri.language.text import EncodedText, knows
from lasertri.measure.objective import Objective, ObjectiveSamples, own_samples
from lasertri.measure.protocol import Samples
from lasertri.model.architectures import MLP_ROLES, output_head
from lasertri.model.editable import require_editable, uncompiled
from lasertri.model.identity import identity
from lasertri.model.loading import load_model, load_tokenizer, model_kind
from lasertri.model.parallel import WHOLE, least, mesh_of, require_heads, require_styles
from lasertri.model.quantised import keep_unpacked, quantisation
from lasertri.model.targets import Target, find_linear_layers, find_targets, has_experts
from lasertri.search.scoring import scoring_blocks
from lasertri.search.settings import Settings
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.shown import shown

logger = logging.getLogger(__name__)

PEFT = Version("0.21.1")  # which loads adapters for parts of layers


@dataclass(frozen=True)
class Problem:
    """A model, what it is to get better at, and how.

    Attributes:
        tokenizer: None with an `Objective`, unless one was given.
        targets: the matrices that may be edited.
        gradients: the samples that score targets; often those of `calibration`.
        calibration: the samples that candidates are tried on.
        confirm: fresh samples that the winner of a truncation's trials is confirmed on; None where there are none.
        held_out: the samples that nothing is chosen by.
        first: samples that show whether the method runs at all: one, or with an `Objective` those of `calibration`.
        factors: of the targets' weights.
        asked: how the first sample is asked; None with an `Objective`.
        text: neutral text, for side effects; None but for causal language models.
        journal: of what takes long.
        files: that the samples were read from, as far as they say.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    targets: Sequence[Target]
    gradients: Samples
    calibration: Samples
    confirm: Samples | None
    held_out: Samples
    first: Samples
    factors: FactorStore
    settings: Settings
    asked: Asked | None = None
    text: EncodedText | None = None
    journal: Journal = NOTHING
    files: Sequence[str] = ()

    @property
    def content(self) -> list[object]:
        """All that a search depends on; of an `Objective` its functions and samples are the caller's to answer for."""
        samples = (self.gradients, self.calibration, self.confirm, self.held_out)
        return [
            identity(self.model),
            [str(target) for target in self.targets],
            [None if these is None else these.content for these in samples],
            self.settings.to_dict(),
        ]


def prepare(
    model: nn.Module | str | Path,
    samples: SampleSource | Iterable[Any],
    settings: Settings,
    *,
    held_out: SampleSource | Iterable[Any] | None = None,
    objective: Objective | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    journal: str | Path | None = None,
    resume: bool = True,
) -> Problem:
    """Split the samples, load and encode what has to be, find the targets; the arguments are those of `adapt`.

    Raises:
        LasertriError: the input cannot be used.
    """
    if objective is not None and not isinstance(objective, Objective):
        raise LasertriError(f"expected objective=Objective(forward, loss, score), got {shown(objective)}")
    listed: Callable[[Any], list[Any]] = as_samples if objective is None else own_samples
    given, others = listed(samples), None if held_out is None else listed(held_out)
    split = _split(given, others, objective, settings)
    beside = settings.edit == "step" and not settings.merge
    if isinstance(model, str | Path):
        model = load_model(model, plain=not beside)
    if not isinstance(model, nn.Module):
        raise LasertriError(f"expected a model, or a hub id or folder to load it from, got {shown(model)}")
    model = uncompiled(model)
    require_editable(model, quantised=beside)
    mesh = mesh_of(model)
    if mesh is not None:
        _require_shardable(model, settings, journal)
    keep_unpacked(model)
    if objective is None:
        tokenizer = tokenizer_of(model, tokenizer)
    encode = _encoder(model, tokenizer, objective, settings)
    strategy = settings.plan
    asked = None if objective is not None else cast("EncodedSamples", encode(given[:1])).asked
    if asked is not None:
        logger.info("the first sample is asked so: %s", asked)
    calibration, rest = encode(split.calibration), encode(split.held_out)
    confirm = encode(split.confirm) if split.confirm else None
    gradients = calibration
    if strategy.gradients not in (None, strategy.evaluation):
        gradients = encode(drawn_samples(split.calibration, settings.calibration, settings.seed))
    if settings.edit == "truncate":
        targets = find_targets(model, settings.targets, roles=strategy.roles, sharded=mesh is not None)
        ranked_at = scoring_blocks(targets, settings.scoring_blocks)
        settings, counts = replace(settings, scoring_blocks=ranked_at), [*settings.blocks, ranked_at]
    else:
        targets = find_linear_layers(model, settings.targets, roles=MLP_ROLES, beside=beside, sharded=mesh is not None)
        counts = [*settings.blocks] or [1]
    require_styles(model, [target.module for target in targets])
    if settings.edit == "step" and importlib.util.find_spec("peft"):
        targets = loadable(model, targets)
    rows = max(target.shape[0] for target in targets)
    if min(settings.blocks, default=1) > rows:
        raise LasertriError(
            f"expected a number of blocks K of at most {rows}, the rows of a target, got {list(settings.blocks)}"
        )
    cache = FactorCache.default() if mesh is None else None  # which one process may find factors in, another not
    budget = least(budget_for(model, settings.memory_budget), mesh)
    factors = FactorStore(model, targets, counts, budget=budget, backend=settings.backend, cache=cache)
    first = encode(split.calibration[:1]) if objective is None else calibration
    text = None if objective is not None else _neutral(model, tokenizer)
    if text is None and settings.max_kl is not None:
        raise LasertriError(
            "expected max_kl with a causal language model whose tokenizer knows English, not with this "
            f"{type(model).__name__}; leave it out"
        )
    problem = Problem(
        *(model, tokenizer, targets, gradients, calibration, confirm, rest, first, factors, settings, asked, text),
        files=files_of([*given, *(others or [])]),
    )
    return replace(problem, journal=open_journal(journal, lambda: problem.content, cache, resume=resume))


def _require_shardable(model: nn.Module, settings: Settings, journal: str | Path | None) -> None:
    """Refuse what is not done with a model that processes hold parts of."""
    if has_experts(model) or quantisation(getattr(model, "config", None)) is not None:
        what = "experts" if has_experts(model) else "quantised weights"
        raise LasertriError(
            f"expected plain linear layers in a model that tensor parallelism spreads over processes, got one with "
            f"{what}; {WHOLE}"
        )
    require_heads(model)
    peft = settings.edit == "step" and importlib.util.find_spec("peft")
    if peft and Version(importlib.metadata.version("peft")) < PEFT:
        raise LasertriError(f"expected peft {PEFT} or later, which loads an adapter for parts of layers; upgrade peft")
    if journal is not None:
        raise LasertriError(
            "expected no journal for a model that tensor parallelism spreads over processes: they could not go on "
            "from where it was together; leave it out"
        )


def _split(
    samples: list[Any], held_out: list[Any] | None, objective: Objective | None, settings: Settings
) -> Split[Any]:
    """The caller's samples, those that calibrate apart from those held out."""
    divide: Callable[..., Split[Any]] = standard_split
    if settings.plan.evaluation != "standard":
        divide = functools.partial(split_samples, calibration=settings.calibration)
    return divide(
        samples,
        held_out=held_out,
        held_out_limit=settings.held_out_limit,
        confirm=settings.confirm if settings.edit == "truncate" and settings.accept == "test" else 0,
        seed=settings.seed,
        group_names=group_names if objective is None else objective.groups,
    )


def _neutral(model: Any, tokenizer: Any) -> EncodedText | None:
    """The neutral text that comes with the package, for a model that continues text and knows English."""
    text = neutral_text()
    if model_kind(model) != "causal" or not tokenizer.is_fast or not knows(text, tokenizer):
        return None
    return EncodedText(text, model=model, tokenizer=tokenizer)


def tokenizer_of(model: Any, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """A language model's tokenizer, its own if none is given."""
    if not hasattr(model, "config") or output_head(model) is None:
        raise LasertriError(
            f"expected a language model of transformers, got a {type(model).__name__}; say with "
            "objective=Objective(forward, loss, score) what any other module is for"
        )
    if given is not None:
        if not isinstance(given, PreTrainedTokenizerBase):
            raise LasertriError(f"expected a tokenizer of transformers, got {shown(given)}; load it by load_tokenizer")
        return given
    return load_tokenizer(model.config._name_or_path, revision=getattr(model.config, "_commit_hash", None))


def _encoder(
    model: Any, tokenizer: Any, objective: Objective | None, settings: Settings
) -> Callable[[Sequence[Any]], Samples]:
    """What makes samples ready for the model."""
    if objective is not None:
        return functools.partial(ObjectiveSamples, objective=objective, batch_size=settings.batch_size)
    return functools.partial(
        EncodedSamples,
        model=model,
        tokenizer=tokenizer,
        delimiter=settings.delimiter,
        chat=settings.chat,
        batch_size=settings.batch_size,
    )
