"""Which backends exist, whether each can run, and which one `auto` takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

import torch

from lasertri.errors import LasertriError
from lasertri.ops import gram, reference


@dataclass(frozen=True)
class Backend:
    """An implementation of the three ops: a module with `block_svd`, `score_blocks` and `reduce_blocks`."""

    name: str
    module: ModuleType
    description: str

    def why_not(self, device: torch.device) -> str | None:
        """Why it cannot run on a device, or None where it can."""
        if device.type == "cuda" and not torch.cuda.is_available():
            return "torch sees no CUDA device"
        return None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("reference", reference, "torch.linalg.svd in FP64, the definition of right"),
        Backend("gram", gram, "one GEMM and one symmetric eigenproblem of the short side"),
    )
}


_AUTO: ContextVar[str] = ContextVar("lasertri_auto_backend", default="auto")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `backend="auto"` mean this backend within, in this thread or task, for pipelines that pass no option on.

    Raises:
        LasertriError: the name is unknown.
    """
    if name not in ("auto", *BACKENDS):
        raise LasertriError(f"expected a backend among {['auto', *BACKENDS]}, came {name!r}")
    token = _AUTO.set(name)
    try:
        yield
    finally:
        _AUTO.reset(token)


def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend for a request.

    Args:
        name: a key of `BACKENDS`, or "auto" for the fastest that can run on the device.

    Raises:
        LasertriError: the name is unknown, or that backend cannot run here.
    """
    if name == "auto":
        name = _AUTO.get()
    if name == "auto":  # the fastest that can run anywhere
        return BACKENDS["gram"]
    if name not in BACKENDS:
        raise LasertriError(f"expected a backend among {['auto', *BACKENDS]}, came {name!r}")
    obstacle = BACKENDS[name].why_not(device)
    if obstacle:
        raise LasertriError(f"backend {name!r} cannot run on {device}: {obstacle}; use backend='auto'")
    return BACKENDS[name]
