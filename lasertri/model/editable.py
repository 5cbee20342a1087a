"""Which weights can be edited at all: those that are plain numbers, in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lasertri.errors import LasertriError
from lasertri.model.parallel import is_sharded, require_shards, require_whole
from lasertri.model.quantised import is_plain, quantisation
from lasertri.ops import DTYPES
from lasertri.support.shown import LONGEST, shown

MERGE = (
    "write the adapter into the weights (PeftModel.from_pretrained(base, adapter).merge_and_unload()), save that model "
    "and load it from there"
)
UNQUANTISED = (
    "load the unquantised checkpoint, edit that, then quantise the result; only a step, unmerged, can stand beside "
    "quantised weights"
)
GGUF = "load it by load_model('FOLDER/FILE.gguf'), which takes its quantisation back"


def require_unquantised(config: Any) -> None:
    """Refuse a model that its configuration calls quantised, but for factored layers.

    Raises:
        LasertriError: it does.
    """
    method = quantisation(config)
    if method is not None:
        raise LasertriError(
            f"expected a model without quantisation, got one quantised by {_shown(method)}; "
            f"{GGUF if method == 'gguf' else UNQUANTISED}"
        )


def _shown(method: object) -> str:
    """A name as it is, unless it is none."""
    return method if isinstance(method, str) and len(method) <= LONGEST else shown(method)


def require_editable(model: nn.Module, *, quantised: bool = False) -> None:
    """Refuse a quantised or compiled model, one with adapters in it, and one with weights that are elsewhere.

    Args:
        quantised: whether it may be quantised.

    Raises:
        LasertriError: saying what was found.
    """
    if torch.is_inference_mode_enabled():
        raise LasertriError(
            "expected to be called outside of torch.inference_mode(), under which nothing has gradients"
        )
    config = getattr(model, "config", None)
    if not quantised or quantisation(config) == "gguf":  # whose adapter would not name its base
        require_unquantised(config)
    for name, module in model.named_modules():
        packed = "qweight" in module._buffers or "qweight" in module._parameters  # GPTQ and AWQ, whatever their modules
        if packed and not quantised:
            raise LasertriError(f"expected plain weights, got {name}, a {type(module).__name__}; {UNQUANTISED}")
        if _of_peft(module):
            raise LasertriError(
                f"expected a model without adapters, got one with peft's in {name or type(module).__name__}, which "
                f"would be saved without its base; {MERGE}"
            )
        if _compiled(module):
            raise LasertriError(
                f"expected a model that is not compiled, got {name or 'one'} that is; adapt it first, and compile "
                "what is saved"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_inference():
            raise LasertriError(
                f"expected weights that can have gradients, got {name} made under torch.inference_mode(); load the "
                "model outside of it (torch.no_grad() does no harm)"
            )
    for name, parameter in model.named_parameters():
        require_present(name, parameter)


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that `torch.compile(model)` wraps, which it shares weights with; any other as it is."""
    return model._modules.get("_orig_mod") or model


def _of_peft(module: nn.Module) -> bool:
    """Whether it is a layer of peft's, or a model that peft has wrapped; peft need not be imported for that."""
    known = {base.__name__ for base in type(module).__mro__ if base.__module__.split(".")[0] == "peft"}
    return bool(known) or bool(getattr(module, "_hf_peft_config_loaded", False))


def _compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` has wrapped it, its `forward` or, by `module.compile()`, how it is called."""
    forward = module.__dict__.get("forward")
    return (
        "_orig_mod" in module._modules
        or module.__dict__.get("_compiled_call_impl") is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


def require_present(name: str, parameter: nn.Parameter) -> None:
    """Refuse a weight that is not in memory: Accelerate keeps those that it offloads, to CPU or disk, as meta tensors.

    They come and go within a forward pass, so no gradient of theirs would ever be seen.

    Raises:
        LasertriError: it is such a one.
    """
    if parameter.is_meta:
        raise LasertriError(
            f"expected all weights in memory, got {name} without its values (offloaded by Accelerate, or never "
            "loaded); load the model without device_map, or onto devices that hold all of it"
        )


def require_plain(name: str, parameter: nn.Parameter, *, sharded: bool = False) -> None:
    """Refuse a weight whose values are not simply those of a floating-point tensor.

    Args:
        sharded: whether it may be sharded by rows or columns.

    Raises:
        LasertriError: it is such a one.
    """
    require_present(name, parameter)
    (require_shards if sharded else require_whole)(name, parameter)
    if not is_plain(parameter) and not (is_sharded(parameter) and parameter.dtype in DTYPES):
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise LasertriError(
            f"expected {name} as a plain tensor in one of {dtypes}, got {type(parameter).__name__} in "
            f"{parameter.dtype}; if it is quantised, {UNQUANTISED}"
        )
