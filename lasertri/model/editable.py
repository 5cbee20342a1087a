"""Which weights can be edited at all: those that are plain numbers, in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lasertri.errors import LasertriError
from lasertri.factored.checkpoint import METHOD
from lasertri.ops import DTYPES
from lasertri.support.shown import LONGEST, shown

MERGE = (
    "write the adapter into the weights (PeftModel.from_pretrained(base, adapter).merge_and_unload()), save that model "
    "and load it from there"
)
UNQUANTISED = "load the unquantised checkpoint, edit that, then quantise the result"


def require_unquantised(config: Any) -> None:
    """Refuse a model that its configuration calls quantised, but for factored layers.

    Raises:
        LasertriError: it does.
    """
    if (quantisation := getattr(config, "quantization_config", None)) is not None:
        fields = quantisation if isinstance(quantisation, dict) else vars(quantisation)
        method = fields.get("quant_method") or type(quantisation).__name__
        method = getattr(method, "value", method)  # Transformers' own are of an enumeration
        if method == METHOD:
            return
        raise LasertriError(
            f"expected a model without quantisation, got one quantised by {_shown(method)}; {UNQUANTISED}"
        )


def _shown(method: object) -> str:
    """A name as it is, unless it is none."""
    return method if isinstance(method, str) and len(method) <= LONGEST else shown(method)


def require_editable(model: nn.Module) -> None:
    """Refuse a quantised or compiled model, one with adapters in it, and one with weights that are elsewhere.

    Raises:
        LasertriError: saying what was found.
    """
    if torch.is_inference_mode_enabled():
        raise LasertriError(
            "expected to be called outside of torch.inference_mode(), under which nothing has gradients"
        )
    require_unquantised(getattr(model, "config", None))
    for name, module in model.named_modules():
        if "qweight" in module._buffers or "qweight" in module._parameters:  # GPTQ and AWQ, whatever their modules
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


def require_plain(name: str, parameter: nn.Parameter) -> None:
    """Refuse a weight whose values are not simply those of a floating-point tensor.

    bitsandbytes has `Params4bit` and `Int8Params`, parameters of their own types; torchao's tensors and torch's
    `DTensor` are subclasses that report an ordinary dtype.

    Raises:
        LasertriError: it is such a one.
    """
    require_present(name, parameter)
    if type(parameter) is not nn.Parameter or parameter.dtype not in DTYPES:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise LasertriError(
            f"expected {name} as a plain tensor in one of {dtypes}, got {type(parameter).__name__} in "
            f"{parameter.dtype}; if it is quantised, {UNQUANTISED}"
        )
