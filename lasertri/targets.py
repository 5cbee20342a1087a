"""Which weight matrices of a model may be edited: architectures as a table, unknown ones by inspection."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lasertri.errors import LasertriError

MLP_ROLES = ("fc_in", "fc_up", "fc_out")


@dataclass(frozen=True)
class Target:
    """One weight matrix of a model.

    Attributes:
        name: path of its parameter, as in `model.get_parameter(name)`.
        layer: index of the repeated part it stands in; -1 outside of those.
        role: what it does there, such as "fc_in" or "q_proj".
        transposed: stored as [inputs, outputs] (GPT-2's `Conv1D`).
        shape: (rows, columns) = (outputs, inputs), however it is stored; a kernel's positions count as inputs.
    """

    name: str
    layer: int
    role: str
    transposed: bool
    shape: tuple[int, int]

    def parameter(self, model: nn.Module) -> nn.Parameter:
        return model.get_parameter(self.name)

    def view(self, stored: Tensor) -> Tensor:
        """The stored weight, or its gradient, with rows = output features; of two dimensions it shares memory."""
        place = self._place(stored)
        return place.flatten(1) if place.dim() > 2 else place

    def write(self, stored: Tensor, weight: Tensor) -> None:
        """Give the stored weight other values `[rows, columns]`."""
        place = self._place(stored)  # flattening a kernel in channels_last would copy it
        place.copy_(weight.reshape(place.shape))

    def _place(self, stored: Tensor) -> Tensor:
        return stored.detach().mT if self.transposed else stored.detach()

    def __str__(self) -> str:
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Architecture:
    """Where a family keeps its layers, and the module path of every role inside one."""

    layers: str
    roles: dict[str, str]


def _attention(prefix: str, out: str) -> dict[str, str]:
    return {f"{x}_proj": f"{prefix}.{x}_proj" for x in "qkv"} | {"out_proj": f"{prefix}.{out}"}


_GATED = {"fc_in": "mlp.gate_proj", "fc_up": "mlp.up_proj", "fc_out": "mlp.down_proj"}
_LLAMA = Architecture("model.layers", _GATED | _attention("self_attn", "o_proj"))
_FC12 = {"fc_in": "fc1", "fc_out": "fc2"}
_GPT2_MLP = {"fc_in": "mlp.c_fc", "fc_out": "mlp.c_proj"}

ARCHITECTURES: dict[str, Architecture] = {
    "gptj": Architecture(
        "transformer.h", {"fc_in": "mlp.fc_in", "fc_out": "mlp.fc_out"} | _attention("attn", "out_proj")
    ),
    "gpt2": Architecture("transformer.h", _GPT2_MLP | {"qkv_proj": "attn.c_attn", "out_proj": "attn.c_proj"}),
    "gpt_neo": Architecture("transformer.h", _GPT2_MLP | _attention("attn.attention", "out_proj")),
    "gpt_neox": Architecture(
        "gpt_neox.layers",
        {
            "fc_in": "mlp.dense_h_to_4h",
            "fc_out": "mlp.dense_4h_to_h",
            "qkv_proj": "attention.query_key_value",
            "out_proj": "attention.dense",
        },
    ),
    "opt": Architecture("model.decoder.layers", _FC12 | _attention("self_attn", "out_proj")),
    "phi": Architecture("model.layers", {"fc_in": "mlp.fc1", "fc_out": "mlp.fc2"} | _attention("self_attn", "dense")),
    "phi3": Architecture(
        "model.layers",
        {
            "fc_in": "mlp.gate_up_proj",
            "fc_out": "mlp.down_proj",
            "qkv_proj": "self_attn.qkv_proj",
            "out_proj": "self_attn.o_proj",
        },
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
}


def find_targets(model: nn.Module, pattern: str | None = None, *, roles: Sequence[str] = MLP_ROLES) -> list[Target]:
    """The weight matrices that may be edited, in layer order.

    Args:
        pattern: regular expression searched for in module paths, to name targets oneself, and in the paths of other
            matrices and kernels, such as `lstm.weight_ih_l0`; by default the MLP matrices of every layer, as in both
            papers.
        roles: which of them by default.

    Raises:
        LasertriError: listing what was seen, where nothing fits.
    """
    matrices, others = dict(_matrices(model)), dict(_other_matrices(model))
    if pattern is not None:
        matrices |= others
        try:
            chosen = [target for name, target in matrices.items() if re.search(pattern, name)]
        except re.error as error:
            raise LasertriError(f"expected a regular expression for the targets, came {pattern!r}: {error}") from error
        wanted = f"a module path that matches {pattern!r}"
    else:
        chosen = [target for target in matrices.values() if target.role in roles]
        wanted = f"MLP matrices in a model of type {_model_type(model)!r}"
    if not chosen:
        seen = Counter((re.sub(r"\d+", "N", name), target.shape) for name, target in (matrices | others).items())
        listing = "; ".join(f"{count} × {name} {list(shape)}" for (name, shape), count in seen.items()) or "no matrices"
        raise LasertriError(f"expected {wanted}, saw {listing}; name targets with a regular expression (--targets)")
    return sorted(chosen, key=lambda target: target.layer)


def _matrices(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """Every linear layer outside embeddings, heads and shared weights, with layer and role."""
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    layers, roles = _layout(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is head or uses[id(module.weight)] > 1:
            continue
        if "weight" not in module._parameters:  # made of others when asked for, as by weight_norm
            continue
        layer, path = _inside(layers, name)
        transposed = isinstance(module, Conv1D)
        rows, columns = reversed(module.weight.shape) if transposed else module.weight.shape
        yield name, Target(f"{name}.weight", layer, roles.get(path, path), transposed, (rows, columns))


def _other_matrices(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """Every other parameter that is a matrix, as stored, and convolutions' kernels as [outputs, inputs · positions]."""
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    layers, roles = _layout(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding | nn.EmbeddingBag) or module is head:
            continue
        for own, parameter in module._parameters.items():
            if parameter is None or uses[id(parameter)] > 1 or not parameter.is_floating_point():
                continue
            if parameter.dim() == 2 or (parameter.dim() > 2 and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)):
                name = f"{path}.{own}".removeprefix(".")
                layer, role = _inside(layers, name.removesuffix(".weight"))
                rows = parameter.shape[0]
                target = Target(name, layer, roles.get(role, role), False, (rows, parameter.numel() // rows))
                yield str(target), target


def _inside(layers: str, path: str) -> tuple[int, str]:
    """In which of the layers a path lies, -1 for none, and the rest of it."""
    inside = re.match(rf"{re.escape(layers)}\.(\d+)\.(.+)$", path) if layers else None
    return (int(inside[1]), inside[2]) if inside else (-1, path)


def _layout(model: nn.Module) -> tuple[str, dict[str, str]]:
    """Path of the layers, and role by module path inside one."""
    known = ARCHITECTURES.get(_model_type(model))
    if known and any(name == known.layers for name, _ in model.named_modules()):  # not so without its head
        return known.layers, {path: role for role, path in known.roles.items()}
    repeated = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1
    }
    if not repeated:
        return "", {}
    name = max(repeated, key=lambda n: sum(p.numel() for p in repeated[n].parameters()))
    return name, _guessed_roles(repeated[name][0])


def _guessed_roles(layer: nn.Module) -> dict[str, str]:
    """An MLP is what widens and narrows the hidden state outside attention: first in, last out, between up."""
    linear = [
        path
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not re.search(r"att(n|ention)|router", path, re.IGNORECASE)
    ]
    if len(linear) not in (2, 3):
        return {}
    return dict(zip(linear, ("fc_in", "fc_out") if len(linear) == 2 else MLP_ROLES, strict=True))


def layers_path(model: nn.Module) -> str:
    """Path of the list that holds the model's layers; empty where there is none."""
    return _layout(model)[0]


def branching_length(model: nn.Module) -> int:
    """Most tokens of a row with branches (positions and a mask of its own), 0 where the model cannot run one.

    All architectures of the table can, with attention that takes a mask, on rows that fit their windows.
    """
    config: Any = getattr(model, "config", None)
    if _model_type(model) not in ARCHITECTURES or config._attn_implementation not in ("eager", "sdpa"):
        return 0
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size", "max_position_embeddings"))
    return min([window for window in windows if window], default=1 << 30)


def _model_type(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)
