"""Which backends exist, whether each can run, and which one `auto` takes."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

import torch
from torch.torch_version import TorchVersion

from lasertri.errors import LasertriError
from lasertri.ops import extension
from lasertri.ops.arguments import check_name

OLDEST_TRITON = "3.6"  # before, FP64 products do not compile


def _runs_anywhere(device: torch.device) -> str | None:
    return None if device.type in ("cpu", "cuda") else "it computes in FP64 and is tested on CPU and CUDA devices alone"


def _version_of_triton() -> str | None:
    """By its metadata, since importing it is slow; a nightly torch brings it under another name."""
    for distribution in ("triton", "pytorch-triton"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; a CUDA torch brings it, or `pip install 'lasertri[triton]'`"
    version = _version_of_triton()
    if version is not None and TorchVersion(version) < OLDEST_TRITON:
        return f"its kernels need triton {OLDEST_TRITON} or later, this is {version}; upgrade torch, which brings it"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"its kernels need compute capability 8.0, this device has {major}.{minor}"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels are compiled for CUDA devices (TRITON_INTERPRET=1 interprets them, for tests)"
    numpy = importlib.metadata.version("numpy")
    if version is not None and TorchVersion(version) < "3.7" and TorchVersion(numpy) >= "2.4":
        return f"the interpreter of triton {version} fails with numpy {numpy}; install 'numpy<2.4', or triton 3.7"
    return None


@dataclass(frozen=True)
class Backend:
    """An implementation of the ops: the module of this name beside `reference`, with the same functions.

    Attributes:
        methods: ways to factor a block that `block_svd(..., method=)` may name, its own choice first.
        obstacle: why it cannot run on a device, or None.
        checks_values: its `block_svd` raises a `BlockError` for a NaN or Inf, so that nobody else needs to look.
    """

    name: str
    description: str
    methods: tuple[str, ...]
    obstacle: Callable[[torch.device], str | None] = _runs_anywhere
    checks_values: bool = False

    @property
    def module(self) -> ModuleType:
        """Imported when first used: some import what others can do without."""
        return importlib.import_module(f"{__package__}.{self.name}")

    def why_not(self, device: torch.device) -> str | None:
        """Why it cannot run on a device, or None where it can."""
        if device.type == "cuda" and not torch.cuda.is_available():
            return "torch sees no CUDA device"
        return self.obstacle(device)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("reference", "torch.linalg.svd in FP64, the definition of right", ("direct",)),
        Backend("gram", "one GEMM and one symmetric eigenproblem of the short side", ("gram",)),
        Backend("triton", "gram with its products fused in Triton kernels", ("gram",), _why_not_triton),
        Backend("cuda", "gram with its factors made in C++", ("gram", "direct"), extension.why_not, checks_values=True),
    )
}
METHODS = ("auto", "gram", "direct")
# Best first; those after `gram`, which runs everywhere, serve a method that it lacks. On a CPU `cuda` is about as fast
# (benchmarks/results/bench_ops.json). On a GPU `triton` and `cuda` wait for a recorded measurement
# (`python -m benchmarks.gpu`): `auto` takes nothing on faith.
AUTO = ("gram", "cuda", "reference")
AUTO_REASON = {
    "cpu": "no other is measurably faster over all shapes",
    "cuda": "no measurement on a GPU shows another to be faster; name triton or cuda to try them",
}

_AUTO: ContextVar[str] = ContextVar("lasertri_auto_backend", default="auto")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `backend="auto"` mean this backend within, in this thread or task, for pipelines that pass no option on.

    Raises:
        LasertriError: the name is unknown.
    """
    check_name("a backend", name, ("auto", *BACKENDS))
    token = _AUTO.set(name)
    try:
        yield
    finally:
        _AUTO.reset(token)


def named(name: str) -> str:
    """What "auto" means in this thread or task: asked before another thread, such as autograd's, does the work."""
    return _AUTO.get() if name == "auto" else name


def choose_backend(name: str, device: torch.device, method: str = "auto") -> Backend:
    """The backend for a request.

    Args:
        name: a key of `BACKENDS`, or "auto" for the first of `AUTO` that can run on the device and has the method.
        method: how blocks are to be factored, one of `METHODS`; "auto" leaves it to the backend.

    Raises:
        LasertriError: the name is unknown, or that backend cannot run here or has no such method.
    """
    check_name("a backend", name, ("auto", *BACKENDS))
    name = named(name)
    if name == "auto":
        able = (BACKENDS[n] for n in AUTO if method in ("auto", *BACKENDS[n].methods))
        found = next((backend for backend in able if backend.why_not(device) is None), None)
        if found is None:
            raise LasertriError(f"expected tensors on a CPU or CUDA device, got {device}; move them there")
        return found
    backend = BACKENDS[name]
    obstacle = backend.why_not(device)
    if obstacle:
        raise LasertriError(f"backend {name!r} cannot run on {device}: {obstacle}; use backend='auto'")
    if method not in ("auto", *backend.methods):
        raise LasertriError(
            f"expected a method that backend {name!r} has, {list(backend.methods)}, got {method!r}; use backend='auto'"
        )
    return backend
