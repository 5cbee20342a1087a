"""A model as a folder: a plain Hugging Face checkpoint, or with factored layers one that only `load_model` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.factored.checkpoint import VARIANT, write_description
from lasertri.factored.layer import FactoredLinear
from lasertri.support.atomic_files import whole_directory


def save(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model, with whatever layers of it are factored, for `load` to read.

    Without any it is a plain Hugging Face checkpoint. The folder appears when it is complete.

    Raises:
        LasertriError: the folder has something in it, or cannot be written.
    """
    with whole_directory(Path(directory), overwrite=overwrite) as folder:
        write_checkpoint(model, folder, tokenizer)


def write_checkpoint(model: nn.Module, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write the weights, the configuration, the tokenizer and, of factored layers, which they are.

    Of a module that cannot save itself it is `model.safetensors`.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, FactoredLinear)}
    own: Any = getattr(model, "save_pretrained", None)
    if layers:
        own(folder, variant=VARIANT)
    elif own is not None:
        own(folder)
    else:
        save_model(model, str(folder / "model.safetensors"))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if layers:
        write_description(layers, folder)
