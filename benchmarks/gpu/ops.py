"""`block_svd`, `score_blocks` and nine-rank `reduce_blocks` of every backend, beside plain torch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu import plain
from benchmarks.gpu.session import Session
from lasertri import block_svd, reduce_blocks, score_blocks
from lasertri.ops.backends import BACKENDS
from lasertri.search.strategies import LASER_RATIOS

SHAPES = ((16384, 4096), (4096, 16384), (4096, 4096), (768, 3072), (8192, 28672))
BLOCKS = (8, 1, 16, 64, 4)
SVD_SECONDS = 5.0  # an SVD that would take longer is not waited for
ROUTES = ("gram", "triton", "cuda")


def measure(session: Session) -> None:
    """GPT-J's shapes first, each K in FP32, and K = 8 in BF16 too, until the time is over."""
    shapes = ((48, 96), (96, 48)) if session.rehearsal else SHAPES
    for rows, columns in shapes:
        for blocks in (3, 1) if session.rehearsal else BLOCKS:
            for dtype in (torch.float32, torch.bfloat16) if blocks in (3, 8) else (torch.float32,):
                case = f"{rows}x{columns} K={blocks} {str(dtype).removeprefix('torch.')}"
                run = functools.partial(_measure_case, session, case, rows, columns, blocks, dtype)
                session.attempt(f"ops {case}", run)


def _measure_case(session: Session, case: str, rows: int, columns: int, blocks: int, dtype: torch.dtype) -> None:
    generator = torch.Generator(session.device).manual_seed(0)
    draw = functools.partial(torch.randn, rows, columns, generator=generator, device=session.device)
    weight, grad = (draw() / columns**0.5).to(dtype), draw().to(dtype)
    parts, grads = plain.split(weight, blocks), plain.split(grad, blocks)
    ranks = [int(min(rows // blocks, columns) * ratio) for ratio in LASER_RATIOS]
    exact = plain.factor_by_eigh(parts)
    expected = plain.slopes(exact, grads)

    flops = _flops(*sorted(parts.shape[-2:]), blocks, max(ranks))

    def add(op: str, route: str, run: Callable[[], object]) -> None:
        if session.late:
            session.skip(f"{route} {op} {case}", "out of time")
            return
        least = session.ceiling(flops[op], 2 * weight.nbytes, "float64")
        session.add(op, case, route, session.time(run), ceiling=least)

    add("block_svd", "b: eigh", lambda: plain.factor_by_eigh(parts))
    add("score_blocks", "b: eigh", lambda: plain.slopes(plain.factor_by_eigh(parts), grads))
    add("reduce_blocks", "b: eigh", lambda: plain.incremental_truncations(plain.factor_by_eigh(parts), ranks, dtype))
    _measure_svd(session, case, parts, grads, ranks)
    for route in ROUTES:
        obstacle = BACKENDS[route].why_not(session.device)
        if obstacle:
            session.skip(f"{route} {case}", obstacle)
            continue
        options = {"blocks": blocks, "backend": route}
        _check(block_svd(weight, **options).sigma, score_blocks(weight, grad, **options).grad, exact[1], expected)
        _check_reduced(reduce_blocks(weight, ratios=LASER_RATIOS, **options), parts, exact[1], ranks)
        add("block_svd", route, functools.partial(block_svd, weight, **options))
        add("score_blocks", route, functools.partial(score_blocks, weight, grad, **options))
        add("reduce_blocks", route, functools.partial(reduce_blocks, weight, ratios=LASER_RATIOS, **options))
        factors = block_svd(weight, **options)
        given = {"factors": factors, "backend": route}
        add("score_blocks, factors given", route, functools.partial(score_blocks, weight, grad, **given))
        add(
            "reduce_blocks, factors given",
            route,
            functools.partial(reduce_blocks, weight, ratios=LASER_RATIOS, **given),
        )


def _flops(short: int, long: int, blocks: int, rank: int) -> dict[str, float]:
    """Operations that the Gram route needs at least: half a Gram matrix, 9 s³ for its eigenvectors, Qᵀ A and Qᵀ G."""
    projection = 2.0 * blocks * short * short * long
    factors = projection / 2 + 9.0 * blocks * short**3 + projection
    truncation = 2.0 * blocks * short * rank * long
    return {
        "block_svd": factors,
        "score_blocks": factors + projection,
        "score_blocks, factors given": projection + 2.0 * blocks * short**3,
        "reduce_blocks": factors + truncation,
        "reduce_blocks, factors given": projection + truncation,
    }


def _measure_svd(session: Session, case: str, parts: Tensor, grads: Tensor, ranks: list[int]) -> None:
    """(a): torch loops over a batch of SVDs on CUDA, so one block's time stands for each of many."""
    some = parts[:1], grads[:1]
    runs: dict[str, Callable[[], object]] = {
        "block_svd": lambda: plain.factor_by_svd(some[0]),
        "score_blocks": lambda: plain.slopes(plain.factor_by_svd(some[0]), some[1]),
        "reduce_blocks": lambda: plain.truncations(plain.factor_by_svd(some[0]), ranks, parts.dtype),
    }
    side = min(parts.shape[-2:])
    known = [row for row in session.rows if row["route"] == "a: svd" and row["part"] == "block_svd" and row["seconds"]]
    largest = max(known, key=lambda row: row["side"], default=None)
    if largest and largest["seconds"] / largest["blocks"] * (side / largest["side"]) ** 3 > SVD_SECONDS:
        session.skip(f"a: svd {case}", f"one SVD would take more than {SVD_SECONDS:.0f} s")
        return
    for op, run in runs.items():
        if session.late:
            session.skip(f"a: svd {op} {case}", "out of time")
            return
        seconds = session.time(run)
        scaled = seconds and seconds * len(parts)
        session.add(op, case, "a: svd", scaled, extrapolated=len(parts) > 1, side=side, blocks=len(parts))


def _check(sigma: Tensor, grad: Tensor, exact: Tensor, expected: Tensor) -> None:
    """What the package promises for a well-conditioned weight, before any time is taken."""
    assert float(((sigma - exact) / exact).abs().max()) <= 1e-9, "σ is off"
    rms = expected.square().mean(-1, keepdim=True).sqrt()
    assert float(((grad - expected).abs() / rms).median()) <= 1e-6, "∂L/∂σ is off"


def _check_reduced(stack: Tensor, parts: Tensor, sigma: Tensor, ranks: list[int]) -> None:
    unit = torch.finfo(parts.dtype).eps
    for reduced, rank in zip(stack, ranks, strict=True):
        residual = (parts.double() - reduced.reshape(parts.shape).double()).square().sum((-2, -1))
        least = sigma[:, rank:].square().sum(-1)
        scale = parts.double().square().sum((-2, -1))
        assert float(((residual - least).abs() / scale).max()) <= 4 * unit, f"rank {rank} is off"
