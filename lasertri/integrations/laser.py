"""LASER's own scripts (pratyushasharma/laser) with an exact SVD, computed once for all rates.

LASER truncates with a randomised SVD, drawn anew for every rate. Put its `src` folder on the path and call `patch()`
before its scripts run.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from dataclasses import dataclass, field

from torch import Tensor, nn

from lasertri.errors import LasertriError
from lasertri.ops import BlockFactors, block_svd, reduce_blocks
from lasertri.ops.arguments import check_matrices, is_number
from lasertri.ops.blocks import retained_rank
from lasertri.support.checksum import content_key
from lasertri.support.shown import shown

logger = logging.getLogger(__name__)


def do_low_rank(weight: Tensor, k: float, debug: bool = False, niter: int = 2) -> nn.Parameter:
    """What LASER's function of this name promises: the best approximation of a matrix at a fraction of its rank.

    Args:
        weight: `[m, n]`.
        k: retained fraction; the rank is `int(min(m, n) * k)`, in LASER's own floating point.
        debug: log the rank.
        niter: accepted and not used: nothing is iterated here.

    Returns:
        A new parameter of the weight's shape, dtype and device. Factors are kept for the last few matrices, by
        content, because LASER copies its model for every rate.

    Raises:
        LasertriError: not a matrix, or k outside [0, 1].
    """
    check_matrices(weight=weight)
    if weight.dim() != 2 or not is_number(k):
        raise LasertriError(f"expected a matrix and one fraction k, got a tensor {list(weight.shape)} and {shown(k)}")
    key = content_key(weight), tuple(weight.shape), weight.dtype, weight.device
    reduced = reduce_blocks(weight, ratios=k, factors=_factors(_Weight(key, weight)))
    if debug:
        rank = retained_rank(min(weight.shape), k)
        logger.warning("%s of %s truncated to rank %d", list(weight.shape), weight.dtype, rank)
    return nn.Parameter(reduced)


def patch() -> list[str]:
    """Rebind `do_low_rank` in every module of LASER's package that has it, and return their names.

    Its families import the function by name, so replacing it where it is defined would change nothing.

    Raises:
        LasertriError: LASER is not on the path.
    """
    try:
        package = importlib.import_module("laser")
    except ImportError as error:
        raise LasertriError("expected LASER's `src` folder on sys.path, found no package `laser`") from error
    patched = []
    for info in pkgutil.iter_modules(package.__path__, "laser."):
        try:
            module = importlib.import_module(info.name)
        except ImportError as error:  # a family whose own dependencies are not installed cannot run anyway
            logger.warning("%s is left alone: %s", info.name, error)
            continue
        if hasattr(module, "do_low_rank"):
            module.do_low_rank = do_low_rank  # type: ignore[attr-defined]
            patched.append(info.name)
    return patched


@dataclass(unsafe_hash=True)
class _Weight:
    """A weight known by its content; the tensor itself is let go once it is factored."""

    key: tuple[object, ...]
    tensor: Tensor | None = field(compare=False)


@functools.lru_cache(maxsize=4)
def _factors(weight: _Weight) -> BlockFactors:
    tensor, weight.tensor = weight.tensor, None
    assert tensor is not None  # a weight that is asked for again is found in the cache
    return block_svd(tensor)
