"""Speed of the ops per route, each round beside one of an exact FP32 SVD, once the result was checked.

pytest benchmarks/bench_ops.py --benchmark-only
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from spectra import Spectrum, stacked
from torch import Tensor

from lasertri import BlockScores, reduce_blocks, score_blocks
from lasertri.ops.backends import BACKENDS
from lasertri.search.strategies import LASER_RATIOS

SHAPES = {
    "768x3072": (768, 3072, 1),
    "3072x768": (3072, 768, 1),
    "16x256x4096": (4096, 4096, 16),
    "2048x2048": (2048, 2048, 1),
}
BASELINE = "exact SVD, FP32"
SLOW_SECONDS = 2.0
PROMISED_SIGMA, PROMISED_GRAD, PROMISED_EXCESS = 1e-9, 1e-6, 1e-6
FP32_SIGMA, FP32_GRAD = 1e-2, 1.0  # an FP32 SVD resolves σ to eps·σ₁ and single gradients not at all on close σ


class Case(NamedTuple):
    weight: Tensor
    grad: Tensor
    blocks: int
    exact: tuple[Tensor, Tensor, Tensor]  # FP64 SVD of every block

    @property
    def ranks(self) -> list[int]:
        return [int(self.exact[1].shape[-1] * ratio) for ratio in LASER_RATIOS]


@functools.cache
def make_case(shape: str, spectrum: Spectrum) -> Case:
    rows, columns, blocks = SHAPES[shape]
    weight = stacked(spectrum, rows, columns, blocks).float()
    grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    u, sigma, vh = torch.linalg.svd(split(weight, blocks).double(), full_matrices=False)
    return Case(weight, grad, blocks, (u, sigma, vh))


@pytest.fixture(params=SHAPES, scope="module")
def shape(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(shape: str, spectrum: Spectrum) -> Case:
    return make_case(shape, spectrum)


def split(matrix: Tensor, blocks: int) -> Tensor:
    return matrix.unflatten(0, (blocks, -1))


def scores_by_fp32_svd(case: Case) -> BlockScores:
    u, sigma, vh = torch.linalg.svd(split(case.weight, case.blocks), full_matrices=False)
    return BlockScores(sigma, (u * (split(case.grad, case.blocks) @ vh.mT)).sum(-2))


def reductions_by_svd_lowrank(case: Case, iterations: int, keep: list[Tensor]) -> None:
    """What LASER's code does: one randomised SVD per rank."""
    torch.manual_seed(0)
    stack = []
    for rank in case.ranks:
        u, sigma, v = torch.svd_lowrank(split(case.weight, case.blocks), q=max(rank, 1), niter=iterations)
        stack.append((u[..., :rank] * sigma[..., None, :rank]) @ v[..., :rank].mT)
    keep.append(torch.stack(stack).flatten(1, 2))


def reduce(backend: str, precision: str) -> Callable[[Case], Tensor]:
    return lambda case: reduce_blocks(
        case.weight, ratios=LASER_RATIOS, blocks=case.blocks, backend=backend, precision=precision
    )


def score(backend: str) -> Callable[[Case], BlockScores]:
    return lambda case: score_blocks(case.weight, case.grad, blocks=case.blocks, backend=backend)


SCORES = {
    BASELINE: scores_by_fp32_svd,
    "gram, FP64": score("gram"),
    "reference, FP64": score("reference"),
}
REDUCTIONS = {
    BASELINE: reduce("reference", "float32"),
    "gram, guarded FP32": reduce("gram", "float32"),
    "gram, FP64": reduce("gram", "float64"),
    "reference, FP64": reduce("reference", "float64"),
}
if BACKENDS["cuda"].why_not(torch.device("cpu")) is None:  # where the extension is built
    SCORES["cuda, FP64"] = score("cuda")
    REDUCTIONS["cuda, FP64"] = reduce("cuda", "float64")
SKETCHES = {"svd_lowrank, niter 2": 2, "svd_lowrank, niter 20": 20}


def score_errors(scores: BlockScores, case: Case) -> dict[str, float]:
    """Largest relative error of σ, and the median error of ∂L/∂σ over the smallest tenth in units of its rms."""
    u, sigma, vh = case.exact
    slope = (u * (split(case.grad, case.blocks).double() @ vh.mT)).sum(-2)
    smallest = max(1, sigma.shape[-1] // 10)
    error = (scores.grad - slope)[:, -smallest:].abs() / slope.square().mean(-1, keepdim=True).sqrt()
    return {"sigma_error": float((scores.sigma / sigma - 1).abs().max()), "grad_error": float(error.median())}


def reduction_errors(stack: Tensor, case: Case) -> dict[str, Any]:
    """Worst relative excess over the optimal residual; relative distance from the exact truncation, per ratio."""
    u, sigma, vh = case.exact
    excess, distance = [], []
    for reduced, rank in zip(stack, case.ranks, strict=True):
        residual = (case.weight.double() - reduced).norm()
        excess.append(float(residual / sigma[:, rank:].norm() - 1))
        truncated = ((u[..., :rank] * sigma[:, None, :rank]) @ vh[:, :rank]).flatten(0, 1)
        distance.append(float((reduced - truncated).norm() / truncated.norm()) if rank else 0.0)
    return {"excess": max(excess), "distance": statistics.median(distance), "distances": distance}


def timed(
    benchmark, route: Callable[[Case], object], baseline: Callable[[Case], object], case: Case, rounds: int
) -> None:
    """Time a route that was checked, each round after one of the baseline: other load falls on both."""
    beside = []

    def run_baseline() -> tuple[tuple[Case], dict[str, object]]:
        start = time.perf_counter()
        baseline(case)
        beside.append(time.perf_counter() - start)
        return (case,), {}

    benchmark.pedantic(route, setup=run_baseline, rounds=rounds)
    if benchmark.stats is not None:
        ratios = [mine / other for mine, other in zip(benchmark.stats.stats.data, beside, strict=True)]
        benchmark.extra_info.update(relative=statistics.median(ratios), baseline_seconds=min(beside))


def rounds_after(start: float) -> int:
    """Three, or one where the checked call shows that a round is slow."""
    return 1 if time.perf_counter() - start > SLOW_SECONDS else 3


@pytest.mark.parametrize("route", SCORES)
def test_score_blocks(route: str, shape: str, case: Case, benchmark, figures: None) -> None:
    start = time.perf_counter()
    scores = SCORES[route](case)  # also warms up
    rounds, errors = rounds_after(start), score_errors(scores, case)
    fp64 = route != BASELINE
    assert errors["sigma_error"] <= (PROMISED_SIGMA if fp64 else FP32_SIGMA)
    assert errors["grad_error"] <= (PROMISED_GRAD if fp64 else FP32_GRAD)
    benchmark.group = f"score_blocks {shape}"
    benchmark.extra_info.update(op="score_blocks", shape=shape, route=route, **errors)
    timed(benchmark, SCORES[route], SCORES[BASELINE], case, rounds)


@pytest.mark.parametrize("route", REDUCTIONS)
def test_reduce_blocks(route: str, shape: str, case: Case, benchmark, figures: None) -> None:
    start = time.perf_counter()
    stack = REDUCTIONS[route](case)  # also warms up
    rounds, errors = rounds_after(start), reduction_errors(stack, case)
    assert errors["excess"] <= PROMISED_EXCESS
    benchmark.group = f"reduce_blocks {shape}"
    benchmark.extra_info.update(op="reduce_blocks", shape=shape, route=route, **errors)
    timed(benchmark, REDUCTIONS[route], REDUCTIONS[BASELINE], case, rounds)


@pytest.mark.parametrize("route", SKETCHES)
def test_svd_lowrank(route: str, shape: str, case: Case, benchmark, figures: None) -> None:
    """Not exact, so nothing is asserted: how far off it is stands beside its time."""
    stacks = []
    benchmark.group = f"reduce_blocks {shape}"
    benchmark.extra_info.update(op="reduce_blocks", shape=shape, route=route)
    sketch = functools.partial(reductions_by_svd_lowrank, iterations=SKETCHES[route], keep=stacks)
    timed(benchmark, sketch, REDUCTIONS[BASELINE], case, rounds=1)
    benchmark.extra_info.update(reduction_errors(stacks[-1], case))
