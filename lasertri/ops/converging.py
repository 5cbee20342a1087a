"""Solvers that give up on a matrix: said in a sentence, and another one tried where a caller wants that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from lasertri.errors import NotConvergedError

logger = logging.getLogger(__name__)

Solved = TypeVar("Solved")


@contextmanager
def solvers_named() -> Iterator[None]:
    """Within, a solver of torch that does not converge is a `NotConvergedError`."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NotConvergedError(
            f"expected values that can be factored, but {str(error).strip().removesuffix('.')}; scale them, or use "
            "another backend"
        ) from error


def converging(solve: Callable[[str, torch.device], Solved], backend: str, device: torch.device) -> Solved:
    """What `solve(backend, device)` gives; where it does not converge by the reference, an FP64 SVD, at last on a CPU.

    Raises:
        NotConvergedError: none of these does.
    """
    ways = dict.fromkeys([(backend, device), ("reference", device), ("reference", torch.device("cpu"))])
    for name, place in ways:
        try:
            return solve(name, place)
        except NotConvergedError as error:
            failure = error
            logger.info("backend %s does not converge on %s", name, place)
    raise NotConvergedError("no eigensolver and no SVD converges on it") from failure
