"""What the CUDA library must do, as functions of any build of it."""

from __future__ import annotations

import functools
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from spectra import gapped, gaussian, power_law
from torch import Tensor

from shim.library import SCHEDULES, Factors, Libraries, Shim, in_threads

ALL_AT_ONCE = 1 << 31
SOLVERS = ("batched", "looped")
SHAPES = [(1, 1, 1), (5, 7, 19), (5, 19, 7), (3, 33, 33), (2, 3, 130), (2, 130, 3), (6, 1, 9)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows contiguous": lambda x: x,
    "columns contiguous": lambda x: x.mT.contiguous().mT,
    "blocks innermost": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "every second column": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "part of a matrix": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 4), value=torch.nan)[:, 1:-4, 3:-2],
}


class Case(NamedTuple):
    """One call, and how the device behaves meanwhile."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    layout: str
    solver: str  # of `Libraries`, or "direct"
    fp64: bool
    workspace: int  # bytes; 1 makes every block a batch of its own, 40,000 a few
    panel: int  # elements; few make a panel 32 columns wide
    schedule: str
    stream: int
    device: int


def cases(count: int) -> list[Case]:
    """So many of all combinations, the same ones each time."""
    every = itertools.product(
        *(SHAPES, DTYPES, LAYOUTS, (*SOLVERS, "direct"), (True, False), (1, 40_000, ALL_AT_ONCE), (1, 1 << 24)),
        *(SCHEDULES, (0, 2), (0, 1)),
    )
    return random.Random(0).sample([Case(*values) for values in every], count)


def check(libraries: Libraries, case: Case) -> None:
    """Factors right against torch in FP64."""
    shim = libraries.batched if case.solver == "direct" else getattr(libraries, case.solver)
    method = "direct" if case.solver == "direct" else "gram"
    shim.reset()
    shim.schedule(case.schedule, seed=sum(case.shape))
    shim.panel_elements(case.panel)
    given = gapped(*case.shape).to(case.dtype)

    def call() -> Factors:
        shim.use(case.stream, device=case.device)
        blocks = LAYOUTS[case.layout](given)
        return shim.factor_blocks(blocks, method, case.fp64, case.workspace, device=case.device)

    assert_factors(in_threads(call)[0], given, case.fp64)
    assert shim.open_things() == ""


def assert_factors(results: Factors, blocks: Tensor, fp64: bool) -> None:
    basis, sigma, status = results
    unit = 1e-10 if fp64 else 1e-4
    assert status.tolist() == [0] * len(blocks)
    exact = torch.linalg.svdvals(blocks.double())
    torch.testing.assert_close(sigma.double().sort(descending=True).values, exact, rtol=unit, atol=unit)
    square = basis.double().mT @ basis.double()
    torch.testing.assert_close(square, torch.eye(sigma.shape[-1]).double().expand_as(square), rtol=0, atol=unit)
    norms = (basis.double().mT @ blocks.double()).norm(dim=-1)
    torch.testing.assert_close(norms, sigma.double(), rtol=unit, atol=unit)


def factored(
    shim: Shim, blocks: Tensor, method: str = "gram", fp64: bool = True, workspace: int = ALL_AT_ONCE
) -> Factors:
    """The op's results, from a thread that closes its handles."""
    return in_threads(lambda: shim.factor_blocks(blocks, method, fp64, workspace))[0]


def right_factors(libraries: Libraries) -> None:
    for case in cases(36):
        check(libraries, case)


def lanes_wait_for_the_gram_matrices_and_are_waited_for(libraries: Libraries) -> None:
    blocks = gapped(6, 9, 40)
    for schedule in SCHEDULES:
        for seed in range(1, 4):
            libraries.looped.reset()
            libraries.looped.schedule(schedule, seed)
            assert_factors(factored(libraries.looped, blocks), blocks, True)


def each_block_s_status_is_its_own(libraries: Libraries) -> None:
    """One of five is not finite: the others are right, in batches of one, of a few, and of all."""
    for value, place, method, fp64, workspace, solver in itertools.product(
        (torch.nan, -torch.inf), (0, 3, 4), ("gram", "direct"), (True, False), (1, 12_000, ALL_AT_ONCE), SOLVERS
    ):
        shim = getattr(libraries, solver)
        shim.reset()
        blocks = gapped(5, 6, 11)
        blocks[place, 4, 9] = value
        basis, sigma, status = factored(shim, blocks, method, fp64, workspace)
        assert status.tolist() == [int(i == place) for i in range(5)]
        others = [i for i in range(5) if i != place]
        assert_factors((basis[others], sigma[others], status[others]), blocks[others], fp64)
        assert basis.isfinite().all(), "a solver was given what is not finite"


def squares_beyond_the_type_are_not_finite(libraries: Libraries) -> None:
    shim = libraries.batched
    shim.reset()
    blocks = gapped(3, 6, 11)
    blocks[1] *= 1e25
    assert factored(shim, blocks, "gram", False)[2].tolist() == [0, 1, 0]
    assert factored(shim, blocks, "gram", True)[2].tolist() == [0, 0, 0]
    blocks[1] *= 1e25
    assert factored(shim, blocks, "direct", False)[2].tolist() == [0, 1, 0]


def a_block_that_its_gram_matrix_does_not_resolve_says_so(libraries: Libraries) -> None:
    """Beside one so much larger that its values are none of the others' business."""
    for shape, schedule in itertools.product(((20, 40), (40, 20), (20, 20)), SCHEDULES):
        blocks = torch.stack([gaussian(*shape) * 1e8, power_law(*shape, condition=1e7), gaussian(*shape)])
        for shim in libraries.both:
            shim.reset()
            shim.schedule(schedule)
            assert factored(shim, blocks)[2].tolist() == [0, 4, 0]
            assert factored(shim, blocks, fp64=False)[2].tolist() == [0, 0, 0], "in FP32 nothing is promised"
            assert factored(shim, blocks, "direct")[2].tolist() == [0, 0, 0]


def a_solver_that_does_not_converge_says_so(libraries: Libraries) -> None:
    blocks = gapped(40, 3, 4)
    for shim, method, workspace in itertools.product(libraries.both, ("gram", "direct"), (1, ALL_AT_ONCE)):
        shim.reset()
        shim.unconverged(37)
        status = factored(shim, blocks, method, workspace=workspace)[2]
        if method == "gram" and shim is libraries.looped and workspace > 1:
            assert sorted(status.tolist()) == [0] * 39 + [2]  # lanes go on in any order
        else:
            assert status.nonzero().tolist() == [[37]]
            assert status[37] == 2


def batches_stay_within_the_bound(libraries: Libraries) -> None:
    blocks = gapped(7, 5, 40)
    for shim, function in zip(libraries.both, ("cusolverDnXsyevBatched", "cusolverDnXsyevd"), strict=True):
        shim.reset()
        factored(shim, blocks, workspace=1)
        least = shim.last_allocation
        for workspace in range(least, 12 * least, least // 2):
            shim.fail("", 0, 0)
            assert_factors(factored(shim, blocks, workspace=workspace), blocks, True)
            assert shim.last_allocation <= workspace
        assert shim.calls(function) == (1 if shim is libraries.batched else 7), "all at once where all fit"


def fp32_is_fp32_and_not_tf32(libraries: Libraries) -> None:
    libraries.batched.reset()
    blocks = gapped(2, 9, 40, dtype=torch.float32)
    sigma = factored(libraries.batched, blocks, fp64=False)[1].sort(descending=True).values
    torch.testing.assert_close(sigma.double(), torch.linalg.svdvals(blocks.double()), rtol=1e-5, atol=0)


def nothing_in_gives_nothing_out(libraries: Libraries) -> None:
    for shape, method in itertools.product(((0, 4, 6), (2, 0, 6), (2, 4, 0)), ("gram", "direct")):
        libraries.batched.reset()
        basis, sigma, status = factored(libraries.batched, torch.zeros(shape), method)
        assert basis.numel() == sigma.numel() == 0
        assert status.tolist() == [0] * shape[0]


def what_the_op_cannot_take_is_refused(libraries: Libraries) -> None:
    shim, ones = libraries.batched, torch.ones(2, 3, 4)
    shim.reset()
    for blocks, method, on_cuda, message in (
        (ones, "gram", False, "expected blocks on a CUDA device, got blocks on another device"),
        (ones[0], "gram", True, r"expected blocks \[B, short side, long side\], got 2 dimensions"),
        (ones.int(), "gram", True, "expected blocks in float32, float64, bfloat16 or float16, got type 3"),
        (ones, "auto", True, "expected the method 'gram' or 'direct', got 'auto'"),
        (ones[:1, :1, :1].expand(1, 1, 1 << 31), "gram", True, "expected sides that fit 32 bits, got 1 and 2147483648"),
    ):
        with pytest.raises(RuntimeError, match=message):
            shim.factor_blocks(blocks, method, True, 1, on_cuda=on_cuda)
    assert shim.open_things() == ""


def threads_have_handles_of_their_own(libraries: Libraries) -> None:
    """Several at once, on the streams of two devices, each with blocks of its own."""
    for shim in libraries.both:
        shim.reset()
        shim.schedule("shuffled")

        def work(i: int, shim: Shim = shim) -> None:
            blocks = gapped(4, 5 + i, 12, seed=i)
            for device, method in itertools.product((0, 1), ("gram", "direct")):
                shim.use(i, device=device)
                assert_factors(shim.factor_blocks(blocks, method, True, ALL_AT_ONCE, device=device), blocks, True)

        in_threads(*(functools.partial(work, i) for i in range(3)))
        assert shim.open_things() == ""


def large_matrices_are_solved_one_by_one(libraries: Libraries) -> None:
    """Each has two rows that are not zero, so that the shim's solver has little to do."""
    shim = libraries.batched
    for rows, batched in ((1024, 1), (1025, 0)):
        shim.reset()
        blocks = torch.zeros(2, rows, 2, dtype=torch.float64)
        blocks[:, 5], blocks[:, -1] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        _, sigma, status = factored(shim, blocks)
        assert sigma.tolist() == [[3, 4]] * 2
        assert status.tolist() == [0, 0]
        assert (shim.calls("cusolverDnXsyevBatched"), shim.calls("cusolverDnXsyevd")) == (batched, 2 - 2 * batched)


def an_older_cusolver_does_too(libraries: Libraries) -> None:
    blocks = gapped(3, 4, 9)
    for i, step in enumerate(("dladdr", "dlopen", "cusolverDnXsyevBatched_bufferSize")):
        shim = Shim(Path(shutil.copy(libraries.path, libraries.path.with_name(f"older{i}.so"))), absent=step)
        assert_factors(factored(shim, blocks), blocks, True)
        assert (shim.calls("cusolverDnXsyevBatched"), shim.calls("cusolverDnXsyevd")) == (0, 3)
        shim.write_coverage()
