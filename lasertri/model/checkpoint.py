"""A model as a folder: a plain Hugging Face checkpoint, with factored layers or without."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from lasertri.errors import LasertriError
from lasertri.factored.checkpoint import describe
from lasertri.factored.layer import FactoredLinear
from lasertri.model.parallel import is_sharded
from lasertri.model.quantised import is_quantised
from lasertri.support.memory import is_out_of_memory
from lasertri.support.output_folder import OutputFolder
from lasertri.support.scratch import scratch_folder
from lasertri.support.shown import reason

CARD_NAME = "README.md"
MODULE_NAME = "model.safetensors"  # of a module that cannot save itself


def save(
    model: PreTrainedModel,
    directory: str | Path | OutputFolder,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    card: str | None = None,
) -> None:
    """Write a model, with whatever layers of it are factored, for `load` to read.

    Without any it is a plain Hugging Face checkpoint. The folder appears when it is complete and was read back.

    Args:
        overwrite: replace what lasertri wrote there before.
        card: text of a model card, `README.md`.

    Raises:
        LasertriError: the folder has something in it that may not be replaced, or cannot be written, or does not load
            as what was saved.
    """
    with output_of(model, directory, overwrite=overwrite).written() as folder:
        write_checkpoint(model, folder, tokenizer)
        reloaded(model, folder)
        if card is not None:
            (folder / CARD_NAME).write_text(card, encoding="utf-8")


def output_of(model: nn.Module, directory: str | Path | OutputFolder, *, overwrite: bool) -> OutputFolder:
    """Where it is to be saved, which is not where it was loaded from."""
    own: Any = model
    loaded_from = getattr(getattr(own, "config", None), "_name_or_path", "")
    return OutputFolder.of(directory, overwrite=overwrite, inputs=[loaded_from or None])


def write_checkpoint(model: nn.Module, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write the weights, the configuration, the tokenizer and, of factored layers, which they are.

    Of a module that cannot save itself it is `model.safetensors`.
    """
    layers = _factored(model)
    own: Any = getattr(model, "save_pretrained", None)
    if own is not None:
        own(folder)
    else:
        save_model(model, str(folder / MODULE_NAME))
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder)
    if layers:
        describe(layers, folder)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the files of a tokenizer.

    Raises:
        OSError: they cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:  # which is how tokenizers tells of a disk
            raise OSError(str(error)) from error
        raise


def reloaded(model: nn.Module, folder: Path, *, strict: bool = True) -> nn.Module:
    """What was written, as its users will load it, with the weights of `model` once they are known to be the same.

    The files are mapped into memory, so that there is no second model.

    Args:
        strict: whether no tensor may be in one of them alone; else their answers must tell whether that matters.

    Raises:
        LasertriError: it has other tensors, or other values in them.
    """
    state, loaded = model.state_dict(), _loaded(model, folder)
    found = _stored(folder / MODULE_NAME) if loaded is model else loaded.state_dict()
    advice = "save the edit alone, and report this model's architecture"
    if strict and state.keys() != found.keys():
        name = min(state.keys() ^ found.keys())
        raise LasertriError(
            f"expected the checkpoint to load as what was saved, but {name} is only in what was "
            f"{'saved' if name in state else 'loaded'}; {advice}"
        )
    for name, tensor in state.items():
        if name in found and not _same(tensor, found[name]):
            raise LasertriError(
                f"expected the checkpoint to load as what was saved, but {name} has other values, or another shape or "
                f"dtype; {advice}"
            )
    if loaded is model:
        return model
    return _with_weights_of(model, loaded)


def rebuilt(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, *, whole: bool = True) -> nn.Module:
    """The model as it will load again, with the weights in memory; before the work what would go wrong is found out.

    Args:
        whole: whether the weights are to be saved too. Of these only those are written here that share memory or are
            not contiguous: no others are refused.

    Raises:
        LasertriError: it will not be written, or not load as what it is.
    """
    own: Any = model
    with scratch_folder() as directory, _quietly():
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        if whole:
            _save_in_part(model, directory)
        devices = {parameter.device for parameter in model.parameters()}
        others = _factored(model) or any(map(is_quantised, model.modules())) or any(map(is_sharded, model.parameters()))
        if not hasattr(model, "save_pretrained") or others or len(devices) > 1:
            return model
        own.config.save_pretrained(directory)
        built = _built(model, directory)
        if whole:
            as_loaded = _class_of(model).from_pretrained(directory, dtype="auto", device_map="meta")
            dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
            for name, parameter in as_loaded.named_parameters():
                if dtypes.get(name, parameter.dtype) != parameter.dtype:
                    raise LasertriError(
                        f"expected weights of the dtype that they will load with, {parameter.dtype} for {name}, got "
                        f"{dtypes[name]}; convert the whole model (model.to)"
                    )
    return _with_weights_of(model, built)


def _save_in_part(model: Any, directory: Path) -> None:
    settings = getattr(model, "generation_config", None)
    try:
        if settings is not None:
            settings.save_pretrained(directory)
    except ValueError as error:
        problem = reason(error).removeprefix("GenerationConfig is invalid: - ")
        raise LasertriError(
            f"expected settings of generation that can be saved: {problem}; correct generation_config.json, or "
            "model.generation_config"
        ) from error
    try:
        if not hasattr(model, "save_pretrained"):
            save_model(model, str(directory / MODULE_NAME))
        elif not _factored(model):
            model.save_pretrained(directory, state_dict=_delicate(model))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LasertriError(
            f"expected a {type(model).__name__} that can be saved, but: {reason(error)}; give every weight memory of "
            "its own (weight.data.clone(memory_format=torch.contiguous_format)), or save a step without merge"
        ) from error


def _built(model: Any, directory: Path) -> Any:
    """What the configuration describes, without weights, once it is known to have the tensors that are in memory."""
    advice = "no checkpoint of it would load; change model.config, or load the model again"
    kind = _class_of(model)
    with init_empty_weights(include_buffers=False), no_init_weights():
        built: Any = kind(type(model.config).from_pretrained(directory))
    built.tie_weights()  # which moving its parameters to where they have no values has undone
    own = model.state_dict()
    for name, tensor in built.state_dict().items():
        if name in own and own[name].shape != tensor.shape:
            raise LasertriError(
                f"expected a model that its configuration describes, but {name} is {list(own[name].shape)}, and by the "
                f"configuration {list(tensor.shape)}: {advice}"
            )
    for names in _tied(model) - _tied(built):
        raise LasertriError(
            f"expected a model that its configuration describes, but {' and '.join(sorted(names)[:2])} are one weight, "
            f"and by the configuration several: {advice}"
        )
    return _running_alike(built, model)


def _with_weights_of(model: Any, built: Any) -> Any:
    """The same with the weights of a model; those that it lacks are what they would be when it is loaded: anything."""
    built.load_state_dict(model.state_dict(), assign=True, strict=False)
    for module in built.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.randn_like(parameter, device=model.device))
    return built.to(model.device).eval()


def _class_of(model: nn.Module) -> Any:
    """What others load it by: a class of transformers where it comes from one, else its own."""
    classes = (base for base in type(model).__mro__ if base.__module__.startswith("transformers.models."))
    return next(classes, type(model))


def _running_alike(loaded: Any, model: Any) -> Any:
    """With the kernels that run in a model, which are not saved."""
    for how in ("_attn_implementation", "_experts_implementation"):
        if hasattr(loaded.config, how):
            setattr(loaded.config, how, getattr(model.config, how))
    return loaded


def _tied(model: nn.Module) -> set[frozenset[str]]:
    """Names of parameters that are one."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(own) for own in names.values() if len(own) > 1}


def _factored(model: nn.Module) -> dict[str, FactoredLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, FactoredLinear)}


def _delicate(model: nn.Module) -> dict[str, Tensor]:
    """Of the state what shares memory or is not contiguous; at least one tensor.

    Weights that transformers ties, and so writes once, count as one: an embedding is large.
    """
    tied: Any = getattr(model, "all_tied_weights_keys", {})
    own = dict(model.named_parameters(remove_duplicate=False))
    twins = {name for name, first in tied.items() if name in own and own[name] is own.get(first)}
    state = {name: t for name, t in model.state_dict().items() if name not in twins or not t.is_contiguous()}
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    chosen = {
        name: tensor
        for name, tensor in state.items()
        if uses[tensor.untyped_storage().data_ptr()] > 1 or not tensor.is_contiguous()
    }
    smallest = min(state, key=lambda name: state[name].nbytes)
    return chosen or {smallest: state[smallest]}


def _loaded(model: Any, folder: Path) -> Any:
    """As its users will load it; a module that cannot load itself is returned as it is."""
    if not hasattr(model, "save_pretrained"):
        return model
    with _quietly():
        return _running_alike(_class_of(model).from_pretrained(folder, dtype="auto"), model)


def _stored(path: Path) -> dict[str, Tensor]:
    """What `save_model` wrote, with the names of tensors that share memory with others."""
    with safe_open(path, "pt") as file:
        kept = {name: name for name in sorted(file.keys())} | (file.metadata() or {})
        return {name: file.get_tensor(own) for name, own in kept.items() if name != "format"}


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    here, there = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return torch.equal(here, there)


@contextmanager
def _quietly() -> Iterator[None]:
    """Within, transformers shows no progress and says nothing: what it finds is looked at here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
