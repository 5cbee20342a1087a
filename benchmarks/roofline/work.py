"""Work, counted as PyTorch dispatches it: products, eigenproblems, and bytes that are read and written."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from benchmarks.spectra import tokens
from lasertri.ops import eigen, krylov, library, products
from lasertri.ops.products import PANEL_ELEMENTS

# what only looks at a tensor in another way, or reads a number of it
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty"}
FREE = {"_local_scalar_dense", "_unsafe_view", "detach", "lift_fresh", *ALLOCATIONS}
LOOKUPS = {"embedding", "gather", "index", "index_select"}  # these read as much as they give, not all they are given
FACTORISATIONS = {"_linalg_eigh", "_linalg_svd", "linalg_qr"}
BATCHED = {"_linalg_eigh"}  # of these torch hands over all of a batch (since 2.12), of others one after the other
TRIANGULAR = {"linalg_cholesky_ex", "cholesky_inverse", "linalg_solve_triangular"}

CPU = torch.device("cpu")
LARGE = 1 << 24  # elements of a matrix whose best rank is looked for by iteration
SIDES = ("deltas", "inputs")

Shape = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Kind:
    """A sort of work: a product, a factorisation by its name, traffic, or what the host does.

    Attributes:
        size: of an eigenproblem or another factorisation, its shorter side; else 0.
    """

    name: str
    dtype: str = ""
    size: int = 0


@dataclass
class Amount:
    """How much: calls (of a factorisation matrices), floating-point operations, bytes moved.

    Attributes:
        batches: calls of a solver, where torch hands over a batch at once; 0 of what no solver does.
    """

    calls: int = 0
    flops: int = 0
    bytes: int = 0
    batches: int = 0

    def __iadd__(self, other: Amount) -> Amount:
        self.calls += other.calls
        self.flops += other.flops
        self.bytes += other.bytes
        self.batches += other.batches
        return self


Work = dict[Kind, Amount]


def add(work: Work, more: Iterable[tuple[Kind, Amount]]) -> None:
    for kind, amount in more:
        work.setdefault(kind, Amount())
        work[kind] += amount


class Counting(TorchDispatchMode):
    """Within, what runs is counted as if every tensor had another shape.

    Args:
        work: what it is added to, asked for each time.
        full: the shape that a tensor stands for.
        ops: counts a call of one of this package's own ops, which are counted as a whole.
    """

    def __init__(
        self,
        work: Callable[[], Work],
        full: Callable[[Shape], Shape],
        ops: Callable[[Any, dict[str, Any]], Work] | None = None,
    ) -> None:
        super().__init__()
        self._work, self._full, self._ops = work, full, ops
        self._known: dict[object, tuple[Kind, Amount]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_made_of_others(func):  # matmul, say: below autograd it comes here whole
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        if func.namespace == "lasertri":
            assert self._ops is not None
            names = (argument.name for argument in func._schema.arguments)
            add(self._work(), self._ops(func, dict(zip(names, args, strict=False)) | kwargs).items())
        elif not func.is_view and _name(func) not in FREE:
            leaves = tree_leaves((args, kwargs, output))
            key = func, tuple((x.shape, x.dtype) if isinstance(x, Tensor) else str(x) for x in leaves)
            if key not in self._known:
                self._known[key] = self._of(func, args, kwargs, output)
            add(self._work(), [self._known[key]])
        return output

    def _of(self, func: Any, args: Any, kwargs: Any, output: Any) -> tuple[Kind, Amount]:
        name, meta = _name(func), tree_map_only(Tensor, self._meta, (args, kwargs, output))
        given, made = ([x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in (meta[:2], meta[2]))
        moved = sum(x.nbytes for x in [*made, *(made if name in LOOKUPS else given)])
        dtype = str((given or made or [torch.empty(0)])[0].dtype).removeprefix("torch.")
        if name in FACTORISATIONS:
            *lead, rows, columns = given[0].shape
            size, count = min(rows, columns), torch.Size(lead).numel()
            batches = 1 if name in BATCHED else count
            return Kind(name.removeprefix("_").removeprefix("linalg_"), dtype, size), Amount(count, 0, moved, batches)
        if name in TRIANGULAR:
            return Kind(name.removeprefix("linalg_"), dtype, given[0].shape[-1]), _triangular(name, given, moved)
        formula = flop_registry.get(getattr(torch.ops.aten, name.rstrip("_"), func._overloadpacket))
        if formula is not None:
            return Kind("product", dtype), Amount(1, formula(*meta[0], **meta[1], out_val=meta[2]), moved)
        return Kind("traffic"), Amount(1, 0, moved)

    def _meta(self, tensor: Tensor) -> Tensor:
        return torch.empty(self._full(tuple(tensor.shape)), dtype=tensor.dtype, device="meta")


@functools.cache
def _is_made_of_others(func: Any) -> bool:
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    return not func.is_view and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite)


@functools.cache
def _name(func: Any) -> str:
    return str(func._schema.name).split("::")[1]


def _triangular(name: str, given: list[Tensor], moved: int) -> Amount:
    """Of a Cholesky factor n³/3 operations a matrix; of its inverse, which a GPU solves for, n² for every column."""
    size, calls = given[0].shape[-1], given[0].shape[:-2].numel()
    if name == "linalg_cholesky_ex":
        return Amount(calls, calls * size**3 // 3, moved, 1)
    flops = 2 * given[0].numel() * size if name == "cholesky_inverse" else given[1].numel() * size
    return Amount(calls, flops, moved, 1)


class Ops:
    """Counts calls of this package's ops by calls on random values, every dimension a fraction of what it stands for.

    Tokens are a fraction of themselves as features are of the real width, so that what depends on which of them are
    fewer goes as it would. Products then cost the cube of that fraction, bytes its square. What has a size of its own
    is not seen so: of Gram matrices, which are made in bands where they are large, up to 3/8 too much is counted.

    Args:
        scale: how many times wider the model is that the counted one stands for.
        shrink: one over that fraction. Where a rank is looked for by iteration, which has sizes of its own, it is 1.
    """

    TOKENS = ("x", *SIDES)  # arguments whose last but one dimension is tokens
    ROWS = ("sigma", "scales", "bias")  # whose last dimension alone is of features

    def __init__(self, scale: int, shrink: int = 16) -> None:
        self._scale, self._shrink = scale, shrink
        self._known: dict[object, Work] = {}

    def __call__(self, func: Any, named: Mapping[str, Any]) -> Work:
        """Of an op, or a function made of PyTorch's own."""
        shrink = 1 if "rank" in named else self._shrink
        asked = {name: self._resized(name, value, shrink) for name, value in named.items()}
        key = func, repr([(n, (v.shape, v.dtype) if isinstance(v, Tensor) else v) for n, v in asked.items()])
        if key not in self._known:
            self._known[key] = self._counted(func, asked, shrink)
        return self._known[key]

    def _resized(self, name: str, value: Any, shrink: int) -> Any:
        scale, fraction = self._scale, functools.partial(_fraction, shrink)
        if isinstance(value, Tensor):
            *lead, rows, columns = (1, *value.shape)
            rows = rows if name in self.ROWS else fraction(rows * (1 if name in self.TOKENS else scale))
            shape = (*lead, rows, fraction(columns * scale))[1 if value.dim() > 1 else -1 :]
            return torch.empty(shape, dtype=value.dtype, device="meta")
        if name in ("ranks", "offsets"):
            return [number * scale // shrink for number in value]
        return fraction(value) if name in ("rank", "most") else value

    def _counted(self, func: Any, asked: Mapping[str, Any], shrink: int) -> Work:
        work: Work = {}
        values = {name: _random(name, value) if isinstance(value, Tensor) else value for name, value in asked.items()}

        def full(shape: Shape) -> Shape:
            return *shape[:-2], *(size * shrink for size in shape[-2:])

        @contextmanager
        def full_fp32(device: torch.device) -> Iterator[None]:
            with library_full_fp32(device), Counting(lambda: work, full):
                yield

        # a mode sees an op as a whole: what is in it is seen by one that is entered there, where its products are made
        library_full_fp32 = library.full_fp32
        entered = patch.object(library, "full_fp32", full_fp32) if hasattr(func, "_schema") else full_fp32(CPU)
        with panels_of(shrink), _divided(shrink), entered:
            func(**values)
        return work


def _fraction(shrink: int, size: int) -> int:
    return max(1, size // shrink)


def _random(name: str, like: Tensor, seed: int = 0) -> Tensor:
    """Values like `like`, of such singular values where they decide how often it is passed over: a gradient's, 1/i."""
    if like.dim() > 2 and (name in SIDES or like[0].numel() > LARGE):
        return torch.stack([_random(name, own, 10 * seed + i) for i, own in enumerate(like)])
    if name in SIDES:
        return tokens(*like.shape, seed=len(SIDES) * seed + SIDES.index(name)).to(like.dtype)
    generator = torch.Generator().manual_seed(seed)
    if like.dim() == 2 and like.numel() > LARGE:
        m, n = like.shape
        left, right = (torch.randn(size, 128, generator=generator) for size in (m, n))
        return (left / torch.arange(1, 129) @ right.mT).to(like.dtype)
    return torch.randn(like.shape, generator=generator).to(like.dtype)


@contextmanager
def _divided(shrink: int) -> Iterator[None]:
    """Within, eigenproblems that are so many times smaller go by products as on a GPU."""
    solved, band = (max(1, size // shrink) for size in (eigen.SOLVED, products.BAND))
    with (
        patch.multiple(eigen, by_products=lambda _: True, SOLVED=solved),
        patch.object(products, "BAND", band),
        patch.dict(krylov.LOOKS, cpu=krylov.LOOKS["cuda"]),
    ):
        yield


@contextmanager
def panels_of(shrink: int) -> Iterator[None]:
    """Within, matrices that are so many times narrower are multiplied in as many panels as on a GPU."""
    before = PANEL_ELEMENTS["cpu"]
    PANEL_ELEMENTS["cpu"] = max(1, PANEL_ELEMENTS["cuda"] // shrink**2)
    try:
        yield
    finally:
        PANEL_ELEMENTS["cpu"] = before


def summed(parts: Iterable[Work]) -> Work:
    """All of these together."""
    work: Work = {}
    add(work, itertools.chain.from_iterable(part.items() for part in parts))
    return work
