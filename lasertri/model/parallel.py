"""Models whose weights are sharded: every process holds a part of each (transformers' tensor parallelism).

A layer's weight is then a `DTensor`. Where its rows are divided, a process is given all of the layer's inputs and has
its own part of the outputs; where its columns are, its own part of the inputs, and all outputs once they are summed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard

from lasertri.errors import LasertriError
from lasertri.support.shown import shown

STYLES = ("colwise", "rowwise")  # of transformers' plans
WHOLE = "load the whole model (device_map where one device does not hold it)"


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of it alone."""
    return isinstance(tensor, DTensor)


def is_divided(tensor: Tensor) -> bool:
    """Whether it is sharded along one dimension, in one piece for each process."""
    return isinstance(tensor, DTensor) and [type(own) for own in tensor.placements] == [Shard]


def here(tensor: Tensor) -> Tensor:
    """This process's part of a weight, or all of one that is not sharded; shares memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a weight; all processes must ask for it."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def in_all_parts(stored: Tensor, holds: bool) -> bool:
    """Whether something holds in all processes that have a part of a weight."""
    if not isinstance(stored, DTensor):
        return holds
    every: list[bool] = [holds] * stored.device_mesh.size()
    dist.all_gather_object(every, holds, group=stored.device_mesh.get_group())
    return all(every)


def part_like(stored: Tensor, weight: Tensor) -> Tensor:
    """Of a whole weight what this process would hold if it were divided as another; all if that is not sharded."""
    if not isinstance(stored, DTensor):
        return weight
    mesh, dim = stored.device_mesh, _dim(stored)
    parts, mine = weight.chunk(mesh.size(), dim), mesh.get_local_rank()  # which is how a `DTensor` is divided
    return parts[mine] if mine < len(parts) else weight.narrow(dim, 0, 0)


def all_features(side: Tensor, dim: int, shards: Tensor | None) -> Tensor:
    """All of a layer's outputs (dimension 0 of its weight) or inputs (1), of which this process may have its part."""
    if not isinstance(shards, DTensor) or _dim(shards) != dim:
        return side
    shape = (*side.shape[:-1], shards.shape[dim])
    parts = DTensor.from_local(
        side.contiguous(),
        shards.device_mesh,
        [Shard(side.dim() - 1)],
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )
    return parts.full_tensor()


def sides_here(left: Tensor, right: Tensor, shards: Tensor | None) -> tuple[Tensor, Tensor]:
    """Two factors `[m, r]` and `[r, n]`, of which the product is this process's part of theirs."""
    if not isinstance(shards, DTensor):
        return left, right
    if _dim(shards) == 0:
        return part_like(shards, left), right
    return left, part_like(shards, right)


def low_rank(inputs: Tensor, left: Tensor, right: Tensor, shards: Tensor | None) -> Tensor:
    """`inputs @ (left @ right).mT`, of whose inputs or outputs this process has its part, as the layer has."""
    left, right = sides_here(left, right, shards)
    inner = inputs @ right.mT
    if isinstance(shards, DTensor) and _dim(shards) == 1:
        inner = DTensor.from_local(inner, shards.device_mesh, [Partial()], run_check=False).full_tensor()
    return inner @ left.mT


def _dim(stored: DTensor) -> int:
    """Along which dimension a divided weight is: 0, its rows, or 1, its columns."""
    return 0 if stored.placements[0].is_shard(0) else 1


def require_whole(name: str, tensor: Tensor) -> None:
    """Refuse a sharded weight.

    Raises:
        LasertriError: it is one.
    """
    if is_sharded(tensor):
        raise LasertriError(
            f"expected {name} whole, got a DTensor, of which every process holds a part; of such a model adapt finds a "
            f"step (edit='step', without merge); for all else {WHOLE}"
        )


def require_shards(name: str, tensor: Tensor) -> None:
    """Refuse a sharded weight but one whose rows, or whose columns, are divided in one piece for each process.

    Raises:
        LasertriError: it is sharded otherwise.
    """
    if isinstance(tensor, DTensor) and not (tensor.dim() == 2 and is_divided(tensor)):
        raise LasertriError(
            f"expected {name} divided by rows or by columns, got {list(map(str, tensor.placements))}; name other "
            f"targets (--targets), or {WHOLE}"
        )


def mesh_of(model: nn.Module) -> DeviceMesh | None:
    """The processes that hold parts of a model; None for a whole one.

    Raises:
        LasertriError: it is sharded otherwise than by tensor parallelism, or by a transformers that hides it.
    """
    own: Any = model
    size = getattr(own, "_tp_size", None) or 1
    meshes = {parameter.device_mesh for parameter in model.parameters() if isinstance(parameter, DTensor)}
    if not meshes:
        if size > 1:
            raise LasertriError(
                "expected a model sharded by transformers 5.17 or later, which says what its parts are of; upgrade "
                "transformers"
            )
        return None
    [mesh, *others] = meshes
    if others or mesh.ndim != 1 or mesh.size() != size:
        raise LasertriError(
            "expected a model that tensor parallelism alone spreads over processes (tp_plan='auto'), got one sharded "
            f"in another way, or in several (FSDP?); load it with tp_plan='auto' alone, or {WHOLE}"
        )
    return mesh


def require_styles(model: nn.Module, modules: Iterable[str]) -> None:
    """Refuse layers of a sharded model that are not simply divided, or whole.

    Raises:
        LasertriError: what is given to one, or given by it, is something else than by `STYLES`.
    """
    own: Any = model
    for path in modules if mesh_of(model) is not None else ():
        style = own.tp_plan.get(path, own.tp_plan.get(re.sub(r"\b\d+\b", "*", path)))
        if style not in (None, *STYLES):
            raise LasertriError(
                f"expected layers in the styles {' and '.join(STYLES)}, which peft knows, got {path} in "
                f"{shown(style)}; name other targets (--targets), or {WHOLE}"
            )
