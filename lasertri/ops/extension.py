"""The compiled extension: its op, whether it was built and can run, and loading it when first asked for.

`_cpu.so` and `_cuda.so` lie in the package folder where `setup.py` built them. A kernel of the hub has one library at
most, for its own backend, with the kernel's name. Importing loads none.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from lasertri.errors import LasertriError
from lasertri.ops.namespace import NAMESPACE

FOLDER = Path(__file__).parent.parent
BUILD = "LASERTRI_BUILD_CUDA=1 pip install --no-build-isolation --no-deps -e ."
if NAMESPACE != "lasertri":  # a kernel of the hub
    BUILD = "load a build of this kernel that has it"
OLDEST_TORCH = "2.10"  # whose stable ABI csrc/ keeps to

torch.library.define(
    f"{NAMESPACE}::factor_blocks",
    "(Tensor blocks, str method, bool fp64, int workspace) -> (Tensor basis, Tensor sigma, Tensor status)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _fake_factors(blocks: Tensor, method: str, fp64: bool, workspace: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, columns = blocks.shape
    length = min(rows, columns)
    dtype = torch.float64 if fp64 else torch.float32
    return (
        blocks.new_empty(batch, length, rows, dtype=dtype).mT,
        blocks.new_empty(batch, length, dtype=dtype),
        blocks.new_empty(batch, dtype=torch.int32),
    )


torch.library.register_fake(f"{NAMESPACE}::factor_blocks", _fake_factors)


def factor_blocks(blocks: Tensor, method: str, fp64: bool, workspace: int) -> tuple[Tensor, Tensor, Tensor]:
    """Left singular vectors of blocks whose short side comes first, by the library for their device.

    Args:
        blocks: `[B, s, l]`, any strides, fp32, fp64, bf16 or fp16.
        method: "gram", by an eigenproblem of A Aᵀ, or "direct", by an SVD of A.
        fp64: compute in FP64, else in FP32; columns are widened panel by panel.
        workspace: bytes that a batch of blocks should not exceed on a CUDA device; one block is always taken.

    Returns:
        Basis `[B, s, r]` and σ `[B, r]` in the solver's order, and status `[B]`: 1 NaN or Inf in the block or in its
        squares, 2 the solver did not converge, 4 an eigenvalue and its σ² disagree (only "gram" in FP64).

    Raises:
        LasertriError: the extension cannot run on the device of the blocks.
    """
    obstacle = why_not(blocks.device)
    if obstacle:
        raise LasertriError(f"the extension cannot run on {blocks.device}: {obstacle}")
    return getattr(torch.ops, NAMESPACE).factor_blocks(blocks, method, fp64, workspace)


@functools.cache
def _load(path: Path) -> None:
    """Load a library; later calls do nothing. An OSError, if this torch cannot load it."""
    torch.ops.load_library(path)


def why_not(device: torch.device) -> str | None:
    """Why the extension cannot run on a device, or None where it can."""
    if device.type not in ("cpu", "cuda"):
        return f"its libraries are for CPU and CUDA tensors, got {device.type}"
    return _obstacle(device.type)


def build_status() -> dict[str, str]:
    """For each library, what it was built with and whether it loads, or why it does not."""
    return {f"_{kind}": _obstacle(kind) or f"loads, built with {_built_with(kind)}" for kind in ("cpu", "cuda")}


def _obstacle(kind: str) -> str | None:
    path = FOLDER / (f"{NAMESPACE}.abi3.so" if NAMESPACE.startswith(f"_lasertri_{kind}_") else f"_{kind}.so")
    if not path.exists():
        alone = kind == "cuda" and (FOLDER / "_cpu.so").exists()
        return f"the extension was {'built without its CUDA library' if alone else 'not built'}; {BUILD}"
    if kind == "cuda" and torch.version.cuda is None:
        return (
            f"its CUDA library was built with {_built_with(kind)}, but this torch {torch.__version__} has no CUDA; "
            "install a CUDA build of torch"
        )
    if TorchVersion(torch.__version__) < OLDEST_TORCH:
        return f"it needs torch {OLDEST_TORCH} or later, this is {torch.__version__}; upgrade torch"
    try:
        _load(path)
    except OSError as error:
        return (
            f"{path.name} is damaged or for another torch (built with {_built_with(kind)}, this is torch "
            f"{torch.__version__}): {error.__cause__ or error}; {BUILD}"  # torch wraps the loader's own sentence
        )
    return None


def _built_with(kind: str) -> str:
    """What `setup.py` wrote down beside the libraries."""
    try:
        built = json.loads((FOLDER / "_extension.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        built = None
    if not isinstance(built, dict):
        return "an unknown torch"
    words = f"torch {built.get('torch')}"
    return f"{words}, CUDA {built.get('cuda')} for {built.get('architectures')}" if kind == "cuda" else words
