"""Models whose weights are sharded: every process holds a part of each (transformers' tensor parallelism).

A layer's weight is then a `DTensor`. Where its rows are divided, a process is given all of the layer's inputs and has
its own part of the outputs; where its columns are, its own part of the inputs, and all outputs once they are summed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard

from lasertri.errors import LasertriError
from lasertri.support.shown import shown

Found = TypeVar("Found")

SHARDING = Version("5.17")  # of transformers, whose parts say what they are of
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


def dealt(weights: Sequence[Tensor], run: Callable[[Tensor], Found]) -> list[Found]:
    """What `run` gives for all of each weight, some of them sharded; each is gathered in all processes, run in one.

    All must ask for it, and get the same. `run` gives nothing that is on a GPU.
    """
    mesh = next(weight.device_mesh for weight in weights if isinstance(weight, DTensor))
    size, number, found = mesh.size(), mesh.get_local_rank(), list[Found]()
    for start in range(0, len(weights), size):
        turn = enumerate(weights[start : start + size])
        mine = [own for i, weight in turn for own in [_gathered(weight, keep=i == number)] if own is not None]
        every: list[list[Found]] = [[]] * size
        dist.all_gather_object(every, [run(own) for own in mine], group=mesh.get_group())
        found += [each for theirs in every for each in theirs]
    return found


def _gathered(weight: Tensor, *, keep: bool) -> Tensor | None:
    """All of it, for the process that keeps it."""
    gathered = whole(weight)
    return gathered if keep else None


def least(number: int, mesh: DeviceMesh | None) -> int:
    """The least of the numbers that these processes have; this one where there are no others."""
    if mesh is None:
        return number
    every = [number] * mesh.size()
    dist.all_gather_object(every, number, group=mesh.get_group())
    return min(every)


def part_like(stored: Tensor, weight: Tensor) -> Tensor:
    """Of a whole weight what this process would hold if it were divided as another; all if that is not sharded."""
    return _part(weight, _dim(stored), stored.device_mesh) if isinstance(stored, DTensor) else weight


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


def features_here(side: Tensor, dim: int, shards: Tensor | None) -> Tensor:
    """Of all of a layer's outputs or inputs what this process has; see `all_features`."""
    if not isinstance(shards, DTensor) or _dim(shards) != dim:
        return side
    return _part(side, side.dim() - 1, shards.device_mesh)


def sides_here(left: Tensor, right: Tensor, shards: Tensor | None) -> tuple[Tensor, Tensor]:
    """Two factors `[m, r]` and `[r, n]`, of which the product is this process's part of theirs."""
    if not isinstance(shards, DTensor):
        return left, right
    if _dim(shards) == 0:
        return part_like(shards, left), right
    return left, part_like(shards, right)


def low_rank(inputs: Tensor, left: Tensor, right: Tensor, shards: Tensor | None) -> Tensor:
    """`inputs @ (left @ right).mT`, of whose inputs or outputs this process has its part, as the layer has.

    Args:
        left, right: what `sides_here` gives.
    """
    inner = inputs @ right.mT
    if isinstance(shards, DTensor) and _dim(shards) == 1:
        inner = DTensor.from_local(inner, shards.device_mesh, [Partial()], run_check=False).full_tensor()
    return inner @ left.mT


def _part(tensor: Tensor, dim: int, mesh: DeviceMesh) -> Tensor:
    """This process's of the pieces that a `DTensor` would be divided into; the last may lack some, or all."""
    parts, mine = tensor.chunk(mesh.size(), dim), mesh.get_local_rank()
    return parts[mine] if mine < len(parts) else tensor.narrow(dim, 0, 0)


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
            f"expected {name} whole, got a DTensor, of which every process holds a part; such a model is for adapt "
            f"alone, and of it matrices that are stored by themselves; for all else {WHOLE}"
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


def require_sharding() -> None:
    """Refuse an older transformers.

    Raises:
        LasertriError: it is one.
    """
    if Version(transformers.__version__) < SHARDING:
        raise LasertriError(
            f"expected transformers {SHARDING} or later, whose parts of a model say what they are of, got "
            f"{transformers.__version__}; upgrade transformers"
        )


def of_all_processes() -> Any:
    """What has transformers give each process of the default group a part of a model.

    Raises:
        LasertriError: there is one process, or no group.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise LasertriError(
            "expected several processes to load parts of a model, got one; start them with torchrun and call "
            f"torch.distributed.init_process_group, or {WHOLE}"
        )
    from transformers.distributed import DistributedConfig  # type: ignore[attr-defined]

    return DistributedConfig(tp_plan="auto", tp_size=dist.get_world_size())


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
                f"expected a model sharded by transformers {SHARDING} or later, which says what its parts are of; "
                "upgrade transformers"
            )
        return None
    [mesh, *others] = meshes
    if others or mesh.ndim != 1 or mesh.size() != size:
        raise LasertriError(
            "expected a model that tensor parallelism alone spreads over processes (tp_plan='auto'), got one sharded "
            f"in another way, or in several (FSDP?); load it with tp_plan='auto' alone, or {WHOLE}"
        )
    return mesh


def require_heads(model: nn.Module) -> None:
    """Refuse a sharded model whose heads of keys and values processes cannot share evenly.

    Raises:
        LasertriError: some would have part of a head.
    """
    own: Any = model
    mesh, config = mesh_of(model), getattr(own, "config", None)
    text = config if config is None else config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    plan = {} if mesh is None else own.tp_plan
    divided = any(path.endswith("k_proj") and style == "colwise" for path, style in plan.items())
    if mesh is not None and divided and isinstance(heads, int) and heads % mesh.size():
        raise LasertriError(
            f"expected a number of processes that divides the model's {heads} heads of keys and values, got "
            f"{mesh.size()}; start fewer"
        )


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
                f"expected layers in the styles {' and '.join(STYLES)}, got {path} in {shown(style)}; name other "
                f"targets (--targets), or {WHOLE}"
            )
