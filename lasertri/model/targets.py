"""Which weight matrices of a model may be edited."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lasertri.errors import LasertriError
from lasertri.factored.layer import FactoredLinear, Linear
from lasertri.model.architectures import MLP_ROLES, layer_paths, layout, model_type, output_head
from lasertri.model.editable import UNQUANTISED, require_editable, require_plain
from lasertri.model.parallel import here, is_sharded, require_whole, whole
from lasertri.model.quantised import computing_dtype, is_linear, is_quantised
from lasertri.support.parameters import parameter_uses
from lasertri.support.patterns import target_pattern
from lasertri.support.shown import LONGEST, listed, shown

logger = logging.getLogger(__name__)

BY_TURNS = " (one matrix: its rows are q, k and v by turns, head by head)"  # GPT-NeoX, BLOOM and Falcon


@dataclass(frozen=True)
class Target:
    """One weight matrix of a model: a parameter, or the part of one that acts as a matrix of its own.

    Attributes:
        name: path of its parameter, as in `model.get_parameter(name)`; of a quantised layer what that would be.
        layer: index of the repeated part it stands in, a decoder's after its encoder's; -1 outside of those.
        role: what it does there, such as "fc_in" or "q_proj".
        transposed: stored as [inputs, outputs] (GPT-2's `Conv1D`).
        shape: (rows, columns) = (outputs, inputs), however it is stored; a kernel's positions count as inputs.
        expert: index of its matrix in a parameter `[experts, …]`; None where the parameter is one matrix.
        rows: which of the stored matrix's rows are its own, `[start, stop)`; None for all.
    """

    name: str
    layer: int
    role: str
    transposed: bool
    shape: tuple[int, int]
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Target:
        """What `dataclasses.asdict` gave, after a way through JSON, which has no tuples.

        Raises:
            TypeError, ValueError: it can be no matrix of any model.
        """
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        made = cls(**values)
        (rows, columns), (start, stop) = made.shape, (0, made.shape[0]) if made.rows is None else made.rows
        numbers, least = (made.layer, rows, columns, start, stop, made.expert or 0), (-1, 1, 1, 0, 1, 0)
        names = made.name, made.role  # which messages show
        sound = (
            all(type(number) is int and number >= bound for number, bound in zip(numbers, least, strict=True))
            and stop - start == rows
            and made.expert is not False
            and type(made.transposed) is bool
            and all(isinstance(text, str) and text.isprintable() and len(text) <= LONGEST for text in names)
        )
        if not sound:
            raise ValueError(f"the matrix {shown(dict(fields))}")
        return made

    @property
    def module(self) -> str:
        """Path of the module that its parameter belongs to."""
        return self.name.rpartition(".")[0]

    def parameter(self, model: nn.Module) -> nn.Parameter:
        return model.get_parameter(self.name)

    def is_quantised(self, model: nn.Module) -> bool:
        """Whether it is the weight of a quantised layer, which has no numbers to edit."""
        return self.expert is None and is_quantised(model.get_submodule(self.module))

    def shards(self, model: nn.Module) -> Tensor | None:
        """Its parameter where that is sharded, and so what the layer is given or gives; else None."""
        path, _, name = self.name.rpartition(".")
        stored = model.get_submodule(path)._parameters.get(name)
        return stored if stored is not None and is_sharded(stored) else None

    def whole(self, model: nn.Module) -> Tensor:
        """All of it, with rows = output features; shares memory where it can.

        Of a sharded one it is gathered: all processes must ask for it, and should not keep it.
        """
        return self.view(whole(self.parameter(model)))

    def require_plain(self, model: nn.Module, *, sharded: bool = False) -> None:
        """Refuse it where it is no plain floating-point tensor in memory.

        Args:
            sharded: whether it may be sharded by rows or columns, if it is all of its parameter.

        Raises:
            LasertriError: it is not.
        """
        module = model.get_submodule(self.module)
        if self.is_quantised(model) and module._parameters.get("weight") is None:
            raise LasertriError(f"expected plain weights, got {self}, a {type(module).__name__}; {UNQUANTISED}")
        alone = self.expert is None and self.rows is None and not self.transposed
        require_plain(self.name, self.parameter(model), sharded=sharded and alone)

    def device(self, model: nn.Module) -> torch.device:
        """Where it is."""
        module = model.get_submodule(self.module)
        own = (*module._parameters.values(), *module._buffers.values())
        return next(tensor.device for tensor in own if tensor is not None)

    def dtype(self, model: nn.Module) -> torch.dtype:
        """The dtype that it is multiplied in."""
        return computing_dtype(model) if self.is_quantised(model) else self.parameter(model).dtype

    def part(self, stored: Tensor) -> Tensor:
        """Its part of the parameter, or of the parameter's gradient, as it is stored; shares memory."""
        require_whole(self.name, stored)
        matrix = stored.detach() if self.expert is None else stored.detach()[self.expert]
        if self.rows is None:
            return matrix
        rows = slice(*self.rows)
        return matrix[:, rows] if self.transposed else matrix[rows]

    def view(self, stored: Tensor) -> Tensor:
        """The same with rows = output features; shares memory, but for a kernel's in another memory format."""
        place = self._place(stored)
        return place.flatten(1) if place.dim() > 2 else place

    def write(self, stored: Tensor, weight: Tensor) -> None:
        """Give its part of the parameter other values `[rows, columns]`; of a sharded one what of it is here."""
        place = self._place(here(stored))
        place.copy_(weight.reshape(place.shape))

    def whole_shape(self, model: nn.Module) -> tuple[int, int]:
        """(outputs, inputs) of the whole parameter or quantised layer it is stored in."""
        module = model.get_submodule(self.module)
        parameter = None if self.is_quantised(model) else self.parameter(model)
        return _shape(module, parameter, self.transposed)

    def is_layer(self, model: nn.Module) -> bool:
        """Whether it is the weight of a linear layer, which factors can replace: no part of one, no expert's."""
        whole = self.expert is None and self.rows is None
        return whole and isinstance(model.get_submodule(self.module), Linear)

    def linear_layer(self, model: nn.Module) -> Target | None:
        """The linear layer or expert that it is or is part of, as of `find_linear_layers`, or None."""
        if self.expert is None and not is_linear(model.get_submodule(self.module)):
            return None
        return replace(self, role="", shape=self.whole_shape(model), rows=None)

    def _place(self, stored: Tensor) -> Tensor:
        return self.part(stored).mT if self.transposed else self.part(stored)

    def __str__(self) -> str:
        """The parameter's path, then expert and role where it is a part: what `--targets` is searched in."""
        expert = "" if self.expert is None else f".{self.expert}"
        return self.name.removesuffix(".weight") + expert + ("" if self.rows is None else f".{self.role}")


def find_targets(
    model: nn.Module,
    pattern: str | None = None,
    *,
    roles: Sequence[str] = MLP_ROLES,
    sharded: bool = False,
    warn: bool = True,
) -> list[Target]:
    """The weight matrices that may be edited, in layer order.

    Args:
        pattern: regular expression searched for in `str(target)`, to name targets oneself, among them matrices
            outside linear layers and kernels, such as `lstm.weight_ih_l0`; by default the MLP matrices of every
            layer, as in both papers.
        roles: which of them by default.
        sharded: whether they may be sharded.
        warn: whether to say what is left out by default.

    Raises:
        LasertriError: listing what was seen, where nothing fits; or weights are quantised or not in memory, or sharded
            and may not be.
    """
    require_editable(model)
    matrices, others = dict(_matrices(model)), dict(_other_matrices(model))
    if pattern is not None:
        matrices |= others
        wanted_name = target_pattern(pattern)
        chosen = [target for name, target in matrices.items() if wanted_name.search(name)]
        wanted = f"a module path that matches {shown(pattern)}"
    else:
        chosen = [target for target in matrices.values() if target.role in roles]
        if warn:
            _say_what_is_left_out(model)
        wanted = f"MLP matrices in a model of type {model_type(model)!r}"
    if not chosen:
        seen = Counter((re.sub(r"\d+", "N", name), target.shape) for name, target in (matrices | others).items())
        matrices_seen = (
            f"{count} × {name} {list(shape)}{BY_TURNS if name.endswith('query_key_value') else ''}"
            for (name, shape), count in seen.items()
        )
        listing = listed(matrices_seen, between="; ") or "no matrices"
        count = sum(isinstance(module, FactoredLinear) for module in model.modules())
        others_seen = f", and {count} layers that are factors already" if count else ""
        raise LasertriError(
            f"expected {wanted}, saw {listing}{others_seen}; name targets with a regular expression (--targets)"
        )
    for target in chosen:
        target.require_plain(model, sharded=sharded)
    return sorted(chosen, key=lambda target: target.layer)


def find_linear_layers(
    model: nn.Module,
    pattern: str | None = None,
    *,
    roles: Sequence[str] | None = None,
    beside: bool = False,
    sharded: bool = False,
) -> list[Target]:
    """Every linear layer and expert's matrix that may be edited, whole: what several roles share is one target here.

    Args:
        pattern: regular expression searched for in `str(target)`; by default all inside the repeated layers, or of a
            module without such all there are.
        roles: which of them by default, those that have one of these; all where none has.
        beside: whether all that is made stands beside their weights, which may then be quantised.
        sharded: whether they may be sharded.

    Raises:
        LasertriError: there is none, or weights are not in memory, or quantised or sharded and may not be.
    """
    require_editable(model, quantised=beside)
    matrices = [target for _, target in _matrices(model)]
    found = {(target.name, target.expert): target for target in matrices}
    layers = layer_paths(model)
    _say_what_is_left_out(model)
    whole = [
        replace(target, role=_inside(layers, target.name.removesuffix(".weight"))[1], shape=shape, rows=None)
        for target in found.values()
        for shape in [target.whole_shape(model)]
        if target.expert is not None or is_linear(model.get_submodule(target.module))
    ]
    if pattern is not None:
        wanted_name = target_pattern(pattern)
        chosen = [target for target in whole if wanted_name.search(str(target))]
    else:
        chosen = [target for target in whole if target.layer >= 0] or whole
        named = {(target.name, target.expert) for target in matrices if roles is not None and target.role in roles}
        chosen = [target for target in chosen if (target.name, target.expert) in named] or chosen
    if not chosen:
        seen = sorted({re.sub(r"\d+", "N", str(target)) for target in whole})
        wanted = "linear layers" if pattern is None else f"linear layers that match {shown(pattern)}"
        raise LasertriError(f"expected {wanted}, got none among {listed(seen) or 'a model without any'}")
    for target in chosen:
        if not beside or not target.is_quantised(model):
            target.require_plain(model, sharded=sharded)
    return chosen


def _matrices(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """Every linear layer and expert outside embeddings, heads, routers and shared weights, by `str(target)`."""
    uses, layers, (_, roles) = parameter_uses(model), layer_paths(model), layout(model)
    head = output_head(model)
    for name, module in model.named_modules():
        layer, inside = _inside(layers, name)
        if is_linear(module) and module is not head and not _chooses_experts(model, name):
            known = tuple(role for role, path in roles if layer >= 0 and re.fullmatch(path, inside))
            stored = {"weight": (known or (inside,), isinstance(module, Conv1D))}
        else:
            stored = _stacks(module)
        for key, (parts, transposed) in stored.items():
            parameter, quantised = module._parameters.get(key), is_quantised(module)
            if parameter is None and not quantised:  # weight_norm makes it of others when asked
                continue
            if parameter is not None and uses[id(parameter)] > 1:
                continue
            whole = Target(f"{name}.{key}", layer, parts[0], transposed, _shape(module, parameter, transposed))
            stacked = parameter is not None and not quantised and parameter.dim() == 3
            for expert in range(len(parameter)) if stacked else [None]:
                for target in _parts(replace(whole, expert=expert), parts, _shares(model, parts)):
                    yield str(target), target


def _other_matrices(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """Every other parameter that is a matrix, as stored, and convolutions' kernels as [outputs, inputs · positions]."""
    uses, layers = parameter_uses(model), layer_paths(model)
    head = output_head(model)
    for path, module in model.named_modules():
        known = is_linear(module) or isinstance(module, FactoredLinear | nn.Embedding | nn.EmbeddingBag)
        if known or module is head or _chooses_experts(model, path):
            continue
        for own, parameter in module._parameters.items():
            if (
                parameter is None
                or uses[id(parameter)] > 1
                or not parameter.numel()
                or not parameter.is_floating_point()
            ):
                continue
            if parameter.dim() == 2 or (parameter.dim() > 2 and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)):
                name, rows = f"{path}.{own}".removeprefix("."), parameter.shape[0]
                layer, role = _inside(layers, name.removesuffix(".weight"))
                target = Target(name, layer, role, False, (rows, parameter.numel() // rows))
                yield str(target), target


def _shape(module: Any, parameter: Tensor | None, transposed: bool) -> tuple[int, int]:
    """(outputs, inputs), whichever way round and however packed they are stored."""
    if parameter is None or is_quantised(module):
        return module.out_features, module.in_features
    rows, columns = parameter.shape[-2:]
    return (columns, rows) if transposed else (rows, columns)


def _inside(layers: Sequence[str], path: str) -> tuple[int, str]:
    """In which of the layers a path lies, -1 for none, and the rest of it."""
    layer = next((i for i, own in enumerate(layers) if path.startswith(f"{own}.")), -1)
    return layer, path.removeprefix(f"{layers[layer]}.") if layer >= 0 else path


def _parts(whole: Target, roles: Sequence[str], shares: Sequence[int]) -> Iterator[Target]:
    """The matrices that are stored as one, their rows one after the other, by each one's share of them."""
    if len(roles) == 1:
        yield whole
        return
    (rows, columns), start = whole.shape, 0
    for role, share in zip(roles, shares, strict=True):
        stop = start + rows * share // sum(shares)
        yield replace(whole, role=role, shape=(stop - start, columns), rows=(start, stop))
        start = stop


def _shares(model: nn.Module, roles: Sequence[str]) -> list[int]:
    """How many rows each of these roles has of a matrix that they share: heads of attention, else alike."""
    config: Any = getattr(model, "config", None)
    if "q_proj" not in roles:
        return [1] * len(roles)
    queries = config.num_attention_heads
    return [queries if role == "q_proj" else getattr(config, "num_key_value_heads", queries) for role in roles]


def _stacks(module: nn.Module) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Roles and orientation of the parameters that hold one matrix for every expert, as Transformers names them.

    `[E, 2I, H]` beside `[E, H, I]`, or transposed `[E, H, 2I]` beside `[E, I, H]`: their shapes tell which;
    without gates `[E, I, H]` beside `[E, H, I]`. GPT-OSS, in which gate and up take turns row by row, is left alone.
    """
    gate_up, up, down = (module._parameters.get(name) for name in ("gate_up_proj", "up_proj", "down_proj"))
    first = up if gate_up is None else gate_up
    if first is None or down is None or first.dim() != 3 or not getattr(module, "is_concatenated", True):
        return {}
    parts = 1 if gate_up is None else 2
    name, roles = ("up_proj", ("fc_in",)) if gate_up is None else ("gate_up_proj", ("fc_in", "fc_up"))
    experts, one, other = first.shape
    for transposed, expected in ((False, (experts, other, one // parts)), (True, (experts, other // parts, one))):
        if down.shape == expected:
            return {name: (roles, transposed), "down_proj": (("fc_out",), transposed)}
    return {}


def has_experts(model: nn.Module) -> bool:
    """Whether it has experts that share a parameter."""
    return any(_stacks(module) for module in model.modules())


def _say_what_is_left_out(model: nn.Module) -> None:
    """Warn of experts whose matrices cannot be told apart."""
    left = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if re.search("expert", path, re.IGNORECASE)
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3 and name not in _stacks(module)
    ]
    if left:
        logger.warning("experts' matrices in %d parameters are left out, %s among them", len(left), left[0])


def _chooses_experts(model: nn.Module, name: str) -> bool:
    """A linear layer right beside experts says which of them a token takes, or how much of one."""
    return "router" in name or hasattr(model.get_submodule(name.rpartition(".")[0]), "experts")
