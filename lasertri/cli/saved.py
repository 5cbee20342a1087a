"""Edits as folders: found beside their model, and how what was written is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lasertri.cli.typed import command_line
from lasertri.errors import LasertriError
from lasertri.support.shown import reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lasertri.edit.edit import Edit
    from lasertri.result.adaptation import Adaptation
    from lasertri.result.card import Form

ADAPTER = "adapter_config.json"


def load_edits(folder: Path) -> list[Edit]:
    """The edits that `lasertri adapt` left in a folder, in the order they were found.

    Raises:
        LasertriError: there is none, or it was damaged.
    """
    from lasertri.edit.edit import Edit

    beside_checkpoint = folder / "adapter"  # a merged step's
    first = beside_checkpoint if (beside_checkpoint / ADAPTER).exists() else folder
    return [Edit.load(place) for place in (first, *sorted(folder.glob("edit-*")))]


def card_of_edits(
    folder: Path, edits: list[Edit], model: PreTrainedModel, form: Form, title: str, repository: str
) -> str:
    """The model card of a checkpoint with these edits, with what was measured of them where their folder says it."""
    from lasertri.result.adaptation import SUMMARY_NAME
    from lasertri.result.card import Base, Made, adaptation_card, edits_card
    from lasertri.support.environment import environment

    base, described = Base.of(model), [edit.to_dict() for edit in edits]
    try:
        found = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
        if [found["edit"], *filter(None, (each["edit"] for each in found["further"]))] == described:
            made = Made(command_line(), found["data"], found["datasets"], repository)
            return adaptation_card(found, base, form, made, title, again=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # it is an edit without them
    return edits_card(described, base, form, Made(command_line(), repository=repository), title, environment())


def base_of_adapter(folder: Path, *, otherwise: str) -> tuple[str, str | None] | None:
    """The model that an adapter's folder belongs to and its revision; None of a folder or hub id that is a model.

    Args:
        otherwise: what to do where the adapter does not say.

    Raises:
        LasertriError: the adapter does not say.
    """
    if not (folder / ADAPTER).exists() or (folder / "config.json").exists():
        return None
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise LasertriError(f"{folder / ADAPTER}: expected an adapter's description, got {reason(error)}") from error
    if not isinstance(base, str) or not base:
        raise LasertriError(
            f"{folder}: expected an adapter that names its model, but base_model_name_or_path in {ADAPTER} is empty; "
            f"{otherwise}"
        )
    return base, revision


def how_to_load(result: Adaptation, folder: Path, *, factored: bool = False) -> list[str]:
    """What was written, and what reads it, in a line each."""
    from lasertri.model.gguf import is_gguf, place_and_file
    from lasertri.model.loading import CLASSES, model_kind

    if not result.edits:
        return [f"wrote {folder}: what was measured, and no edit"]
    if result.tokenizer is None:  # any module
        return [f"wrote {folder}"]
    kind = model_kind(result.model)
    if (folder / "config.json").exists():
        first = "import lasertri.factored, then " if factored else ""
        load = f"{CLASSES[kind][0].__name__}.from_pretrained"
        return [f'wrote {folder}: the edited model; load it by {first}{load}("{folder}")']
    if not (folder / ADAPTER).exists():
        return [f"wrote {folder}: the edit alone; lasertri apply {folder} MODEL -o OUT writes the edited model"]
    lines = [f'wrote {folder}: a LoRA adapter; load it by PeftModel.from_pretrained(base, "{folder}")']
    adapter = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    base = adapter.get("base_model_name_or_path") or ""
    if result.settings.merge:  # of a model of which processes hold parts
        lines.append(f"lasertri apply {folder} MODEL -o OUT merges it, where the whole model fits")
    if is_gguf(base):
        place, file = place_and_file(base)
        lines.append(f'its base: {CLASSES[kind][0].__name__}.from_pretrained("{place}", gguf_file="{file}")')
    if adapter.get("target_parameters"):
        lines.append(
            "engines may pass over what it adds to experts: serve the checkpoint that "
            f"lasertri apply {folder} MODEL -o OUT writes"
        )
    elif kind == "causal" and is_gguf(base):
        lines.append(
            f"llama.cpp: convert_lora_to_gguf.py --base FOLDER {folder}; FOLDER has the config.json of the model that "
            "the GGUF file was made from"
        )
    elif kind == "causal":
        lines.append(
            f"vLLM: --enable-lora --max-lora-rank {adapter['r']} --lora-modules task={folder}; "
            f"llama.cpp: convert_lora_to_gguf.py {folder}"
        )
    return lines
