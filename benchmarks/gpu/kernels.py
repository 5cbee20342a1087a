"""Each Triton kernel alone, beside its composition in eager torch, that compiled, and the device's ceiling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import tensor_cores
from benchmarks.gpu import plain
from benchmarks.gpu.session import Session
from lasertri.ops.backends import BACKENDS
from lasertri.ops.kernels.diagonal import diagonal
from lasertri.ops.kernels.gram import gram
from lasertri.ops.kernels.prefix_product import prefix_product
from lasertri.ops.kernels.tiles import arithmetic
from lasertri.ops.triton import FP32
from lasertri.search.strategies import LASER_RATIOS


@dataclass(frozen=True)
class Case:
    kernel: str
    name: str
    fused: Callable[[], Tensor]
    eager: Callable[[], Tensor]
    flops: float
    moved: float  # bytes read and written once
    rate: str  # which ceiling of flops is its own
    tolerance: float  # relative to the largest value, of the arithmetic and the output type


def cases(device: torch.device, *, small: bool) -> Iterator[Case]:
    """GPT-J's matrices, whole and in eight blocks, and 2,048 activations of it."""
    size = 16 if small else 1024
    for blocks, rows, columns in ((1, 4 * size, 16 * size), (8, size // 2, 16 * size), (16, size // 4, 4 * size)):
        for dtype in (torch.bfloat16, torch.float32):
            yield from _factored(device, blocks, rows, columns, dtype)
    yield from _activations(device, tokens=2 * size, rows=4 * size)


def _factored(device: torch.device, blocks: int, rows: int, columns: int, dtype: torch.dtype) -> Iterator[Case]:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    a, basis = draw(blocks, rows, columns, dtype=dtype), draw(blocks, rows, rows) / rows**0.5
    coordinates = basis.mT @ a.double()
    name = f"{blocks} x {rows}x{columns} {str(dtype).removeprefix('torch.')}"
    product = 2.0 * blocks * rows * rows * columns
    double, unit = torch.float64, torch.finfo(dtype).eps
    squares = 8 * basis.numel()
    yield Case(
        "gram, FP64", name, lambda: gram(a, compute=double), lambda: a.double() @ a.double().mT,
        product / 2, a.nbytes + squares, "float64", 1e-12,
    )  # fmt: skip
    single = dtype if dtype == torch.bfloat16 else torch.float32
    yield Case(
        "gram, FP32", name, lambda: gram(a, compute=single, precision=FP32), lambda: a.float() @ a.float().mT,
        product / 2, a.nbytes + squares / 2, arithmetic(single, FP32), _allowed(single, columns),
    )  # fmt: skip
    yield Case(
        "diagonal, two sides", name, lambda: diagonal(basis, a, coordinates.mT),
        lambda: ((basis.mT @ a.double()) * coordinates).sum(-1),
        product, a.nbytes + squares + 8 * coordinates.numel(), "float64", 1e-12,
    )  # fmt: skip
    contracted = coordinates @ coordinates.mT
    yield Case(
        "diagonal, one side", name, lambda: diagonal(basis, contracted, basis),
        lambda: (basis * (contracted @ basis)).sum(-2),
        2.0 * blocks * rows**3, 2 * squares, "float64", 1e-12,
    )  # fmt: skip
    ranks = [int(rows * ratio) for ratio in LASER_RATIOS]
    for compute in (torch.float64, torch.float32):
        left, right = basis.to(compute), coordinates.to(compute)
        out = torch.empty(len(ranks), *a.shape, dtype=dtype, device=device)
        yield Case(
            f"prefix product, {'FP64' if compute == double else 'FP32'}", name,
            lambda left=left, right=right, out=out, compute=compute: _written(
                left, right, ranks, out, None, compute, FP32
            ),
            lambda left=left, right=right: plain.incremental_products(left, right, ranks, dtype),
            2.0 * blocks * rows * max(ranks) * columns,
            out.nbytes + (left.nbytes + right.nbytes) * max(ranks) / rows,
            arithmetic(compute, FP32), max(4 * unit, _allowed(compute, max(ranks))),
        )  # fmt: skip


def _activations(device: torch.device, tokens: int, rows: int) -> Iterator[Case]:
    generator = torch.Generator(device).manual_seed(0)
    coordinates = torch.randn(1, tokens, rows, generator=generator, device=device)
    basis = torch.randn(1, rows, rows, generator=generator, device=device) / rows**0.5
    bias = torch.randn(1, rows, generator=generator, device=device).bfloat16()
    ranks = [int(rows * ratio) for ratio in LASER_RATIOS]
    out = torch.empty(len(ranks), 1, tokens, rows, dtype=torch.bfloat16, device=device)
    yield Case(
        "projection of activations", f"{tokens} tokens, {rows} rows, bfloat16",
        lambda: _written(coordinates, basis.mT, ranks, out, bias, torch.float32, FP32),
        lambda: plain.incremental_products(coordinates, basis.mT, ranks, torch.bfloat16, bias),
        2.0 * tokens * max(ranks) * rows,
        out.nbytes + (coordinates.nbytes + basis.nbytes) * max(ranks) / rows,
        FP32, 4 * torch.finfo(torch.bfloat16).eps,
    )  # fmt: skip


def _allowed(compute: torch.dtype, terms: int) -> float:
    """Relative to the largest value, for sums of so many products."""
    return 1e-12 if compute == torch.float64 else 2 * tensor_cores.error(arithmetic(compute, FP32), terms)


def _written(
    left: Tensor,
    right: Tensor,
    ranks: list[int],
    out: Tensor,
    bias: Tensor | None,
    compute: torch.dtype,
    precision: str,
) -> Tensor:
    prefix_product(left, right, ranks, out, bias, compute=compute, precision=precision)
    return out


def measure(session: Session) -> None:
    """Check each kernel against its eager composition in plain torch, then time fused, eager and compiled."""
    obstacle = BACKENDS["triton"].why_not(session.device)
    if obstacle:
        session.skip("kernels", obstacle)
        return
    for case in cases(session.device, small=session.rehearsal):
        session.attempt(f"kernel {case.kernel}: {case.name}", functools.partial(_measure_case, session, case))


def _measure_case(session: Session, case: Case) -> None:
    label = f"{case.kernel}: {case.name}"
    expected = case.eager()
    error = float((case.fused().double() - expected.double()).abs().max() / expected.double().abs().max())
    assert error <= case.tolerance, f"error {error:.1e}, allowed {case.tolerance:.1e}"
    del expected
    least = session.ceiling(case.flops, case.moved, case.rate)
    for route, run in (("fused", case.fused), ("eager", case.eager)):
        session.add("kernels", label, route, session.time(run), ceiling=least, error=error)
    if not session.rehearsal and "bfloat16" in case.name:  # it takes seconds to compile one, and the other is alike
        torch._dynamo.reset()
        session.add("kernels", label, "compiled", session.time(torch.compile(case.eager)), ceiling=least, error=error)
