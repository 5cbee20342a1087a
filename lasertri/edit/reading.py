"""What the files of an edit hold, believed when it is of the kind, shape and size that it must be, and finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lasertri.errors import LasertriError
from lasertri.model.targets import Target
from lasertri.ops.finite import all_finite
from lasertri.support.shown import reason, shown


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Within, a field of a description that is missing or wrong is one sentence."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LasertriError(f"{path}: expected the fields of an edit, got {reason(error)}; copy it again") from error


def field_of(config: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A field's value, which JSON must have given one of these types."""
    value = config[name]
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} {shown(value)}")
    return value


def targets_of(config: Mapping[str, Any]) -> list[Target]:
    """The matrices that it changes, at least one."""
    targets = [Target.from_dict(fields) for fields in field_of(config, "targets", list)]
    if not targets or len(set(targets)) < len(targets):
        raise ValueError("no targets, or one twice")
    return targets


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Those of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise LasertriError(f"{path}: expected an edit's tensors, but {reason(error)}; copy it again") from error


def checked(
    path: Path, name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """A tensor of the file, once it is known to be there, as it must be."""
    if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
        got = "none" if tensor is None else f"{list(tensor.shape)} in {tensor.dtype}"
        raise LasertriError(f"{path}: expected {name} {list(shape)} in {dtype}, got {got}; copy the edit again")
    if not all_finite(tensor):
        raise LasertriError(f"{path}: expected finite values, got NaN or Inf in {name}; find the edit again")
    return tensor
