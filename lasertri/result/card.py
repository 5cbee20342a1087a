"""`README.md`: the model card of what is saved, which the Hugging Face hub shows and searches by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader
from torch import nn
from transformers import PreTrainedModel

from lasertri.measure.side_effects import described
from lasertri.model.gguf import is_gguf, place_and_file
from lasertri.model.loading import CLASSES, model_kind
from lasertri.result.summary import aside, describe, loss_change, loss_of, nats
from lasertri.search.settings import DEFAULTS
from lasertri.support.hub import licence

PIPELINES = {"causal": "text-generation", "masked": "fill-mask"}  # the hub's names for what a model does

Form = Literal["adapter", "checkpoint", "factored", "edit"]


@dataclass(frozen=True)
class Made:
    """How a result came about, as far as is known.

    Attributes:
        command: the command line, with the names of files and without their folders.
        data: what it was made from: the name of a file or a task.
        datasets: ids of these data on the hub.
        repository: where it goes on the hub; empty where it does not.
    """

    command: str = ""
    data: str = ""
    datasets: Sequence[str] = ()
    repository: str = ""


@dataclass(frozen=True)
class Base:
    """The model that was edited, as a card names it.

    Attributes:
        name: its id on the hub, or its folder's name alone.
        revision: its commit there; None where it is not known to be from there.
        licence: the fields of a card that say it.
        loader: the class that loads it; empty of a module that transformers has no class for.
        kind: what it does, by the hub's name, where that has one.
        gguf_file: its file there, where it is one of GGUF.
        quantised: how it was quantised as it was loaded, if it was; a checkpoint that is quantised says so itself.
    """

    name: str
    revision: str | None
    licence: dict[str, Any]
    loader: str
    kind: str | None
    gguf_file: str = ""
    quantised: dict[str, Any] | None = None

    @classmethod
    def of(cls, model: nn.Module, *, language: bool = True) -> Base:
        """Look at a model.

        Args:
            language: whether it is a language model; else it is loaded by its own class.
        """
        config = getattr(model, "config", None)
        name, revision = getattr(config, "_name_or_path", ""), getattr(config, "_commit_hash", None)
        name, file = place_and_file(name) if is_gguf(name) else (name, "")
        shown = name if revision is not None else Path(name).absolute().name if name else type(model).__name__
        loader, kind = "", None
        quantizer: Any = getattr(model, "hf_quantizer", None)
        quantised = None
        if quantizer is not None and not quantizer.pre_quantized:
            quantised = json.loads(quantizer.quantization_config.to_json_string(use_diff=False))
        if language:
            kind = PIPELINES.get(model_kind(model))
            loader = CLASSES[model_kind(model)][0].__name__
        elif isinstance(model, PreTrainedModel) and type(model).__module__.startswith("transformers."):
            loader = type(model).__name__
        return cls(shown, revision, licence(name, revision) if name else {}, loader, kind, file, quantised)


def adaptation_card(
    result: dict[str, Any], base: Base, form: Form, made: Made, title: str, *, again: bool = False
) -> str:
    """The card of an accepted edit.

    Args:
        result: of `Adaptation.to_dict`.
        title: name of the folder, and of what loads it where it is not pushed.
        again: whether the edit was written into a checkpoint after it was measured.
    """
    edits = [result["edit"], *(found["edit"] for found in result["further"] if found["edit"] is not None)]
    settings = {name: value for name, value in result["settings"].items() if _given(name, value)}
    return _card(
        base, form, made, title,
        kinds=sorted({edit["kind"] for edit in edits}),
        does=[describe(result["edit"], result["matrices"]), *map(describe, edits[1:])],
        accepted=result["reason"],
        tables=[_measured(result)],
        refused=result["refused"],
        effects="" if result["side_effects"] is None else aside([result, *result["further"]]),
        settings=settings | {"edit": result["settings"]["edit"], "seed": result["settings"]["seed"]},
        environment=result["environment"],
        again=again,
    )  # fmt: skip


def edits_card(edits: list[dict[str, Any]], base: Base, form: Form, made: Made, title: str, environment: Any) -> str:
    """The card of edits whose figures are not known."""
    kinds = sorted({str(edit["kind"]) for edit in edits})
    return _card(base, form, made, title, kinds=kinds, does=list(map(describe, edits)), environment=environment)


def compression_card(result: dict[str, Any], base: Base, made: Made, title: str, environment: Any) -> str:
    """The card of a compressed model; `result` is of `Compression.to_dict`."""
    sizes = [
        f"{result[name]['before']:,} {name} before, {result[name]['after']:,} after" for name in ("parameters", "bytes")
    ]
    effects = result["side_effects"]
    text = "" if effects is None else f"on {effects['tokens']} tokens of text that took no part: {described(effects)}"
    return _card(
        base, "factored", made, title,
        kinds=["compress"],
        does=[f"{result['factored']} of {result['targets']} matrices as {result['factors']} factors", *sizes],
        effects=text,
        environment=environment,
    )  # fmt: skip


def _card(base: Base, form: Form, made: Made, title: str, *, kinds: list[str], environment: Any, **values: Any) -> str:
    relation = "adapter" if form == "adapter" else "finetune"
    data = ModelCardData(
        base_model=base.name if base.revision is not None else None,
        base_model_relation=relation if base.revision is not None else None,
        datasets=list(made.datasets) or None,
        library_name="peft" if form == "adapter" else "transformers" if base.loader else None,
        pipeline_tag=base.kind,
        tags=["lasertri", *kinds, *(["lora"] if form == "adapter" else [])],
        **base.licence,
    )
    page = Environment(
        loader=PackageLoader("lasertri.result", "."), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).get_template("card.md.j2")
    return str(
        ModelCard(
            page.render(
                card_data=data.to_yaml(),
                base=base,
                form=form,
                made=made,
                title=made.repository or title,
                environment=environment,
                kinds=kinds,
                **values,
            )
        )
    )


def _given(name: str, value: Any) -> bool:
    """Whether an option is not what it is by default; from JSON tuples come as lists."""
    default = DEFAULTS.get(name)
    return value != (list(default) if isinstance(default, tuple) and isinstance(value, list) else default)


def _measured(result: dict[str, Any]) -> tuple[str, list[list[str]]]:
    """A caption, and rows of what was measured: before, after, the difference with its interval.

    On samples that nothing was chosen by, if these could be measured.
    """
    held_out = result["held_out"] is not None
    comparison = result["held_out"] if held_out else result["calibration"]
    count = f"n = {comparison['baseline']['n']}"
    caption = f"held out, {count}" if held_out else f"{count}, on which the edit was chosen"
    before, after = comparison["baseline"], comparison["edited"]
    scored = "score" if after["majority_rate"] is None else "accuracy"
    share = "" if after["majority_rate"] is None else f" (majority {after['majority_rate']:.1%})"
    difference = ""
    if comparison["interval"] is not None:
        low, high = (100 * bound for bound in comparison["interval"])
        gain = 100 * (after["accuracy"] - before["accuracy"])
        difference = f"{gain:+.1f} points [{low:+.1f}, {high:+.1f}]: {comparison['verdict']}"
    rows = [[scored + share, f"{before['accuracy']:.1%}", f"{after['accuracy']:.1%}", difference]]
    if None not in (before["balanced_accuracy"], after["balanced_accuracy"]):
        rows.append(["balanced accuracy", *(f"{it['balanced_accuracy']:.1%}" for it in (before, after)), ""])
    change, difference = loss_change(comparison), ""
    if change is not None:
        low, high = comparison["loss_interval"]
        difference = f"{change:+.3f} [{low:+.3f}, {high:+.3f}]"
    rows.append([loss_of(after)[0], nats(loss_of(before)[1]), nats(loss_of(after)[1]), difference])
    return caption, rows
