"""What an op may be given: dense tensors, whole numbers and names, each refused in a sentence where it is none."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lasertri.errors import LasertriError, shown

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_dense(name: str, value: object, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """Raise unless this is a tensor of one of these dtypes with its values in memory, by strides."""
    expected = f"{name} in {listed(dtypes)}"
    if not isinstance(value, Tensor):
        raise LasertriError(f"expected {expected}, got {type(value).__name__}; give a torch.Tensor")
    kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.").lstrip("_").replace("_", " ")
    if kind != "strided":
        raise LasertriError(f"expected {expected}, dense, got a {kind} tensor; make it dense, as by to_dense()")
    if value.is_meta:
        raise LasertriError(f"expected {expected}, got a tensor on the meta device, which has no values; load them")
    if value.dtype not in dtypes:
        raise LasertriError(f"expected {expected}, got {value.dtype}")


def check_matrices(**matrices: Tensor) -> None:
    """Raise unless these are dense, and matrices or stacks of them, none without rows or columns."""
    for name, matrix in matrices.items():
        check_dense(name, matrix)
        if matrix.dim() < 2 or 0 in matrix.shape[-2:]:
            raise LasertriError(f"expected {name} [..., rows, columns] with both positive, got {list(matrix.shape)}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: object, least: int) -> None:
    """Raise unless this is a whole number of at least so much that torch can hold."""
    if not is_whole(value) or not least <= value < 2**63:
        raise LasertriError(f"expected {name} to be an integer of at least {least}, got {shown(value)}")


def check_name(what: str, value: object, names: Sequence[str]) -> None:
    """Raise unless this is one of these names."""
    if not isinstance(value, str) or value not in names:
        raise LasertriError(f"expected {what} among {list(names)}, got {shown(value)}")


def several(value: Any) -> list[Any] | None:
    """The values of a list or of an array of one dimension; None of what is no such."""
    if getattr(value, "ndim", None) == 1 or (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
        return list(value)
    return None


def listed(dtypes: Sequence[torch.dtype]) -> str:
    """Dtypes as a message names them."""
    return " or ".join(str(dtype) for dtype in dtypes)
