"""LASER's `do_low_rank` at nine rates, as its code does it, beside the drop-in of `lasertri.integrations.laser`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.session import Session
from lasertri.integrations import laser

RATES = (1, 2, 4, 6, 8, 9, 9.5, 9.9, 9.95)
SHAPE, REHEARSED_SHAPE = (16384, 4096), (64, 16)  # GPT-J's fc_in


def by_svd_lowrank(weight: Tensor) -> None:
    """One randomised SVD for each rate, multiplied out again (two power iterations, as for GPT-J)."""
    for rate in RATES:
        rank = int(min(weight.shape) * ((10 - rate) * 0.1))
        u, sigma, v = torch.svd_lowrank(weight, q=rank, niter=2)
        _ = u @ torch.diag(sigma) @ v.mT


def by_drop_in(weight: Tensor) -> None:
    laser._factors.cache_clear()
    for rate in RATES:
        laser.do_low_rank(weight, (10 - rate) * 0.1)


def measure(session: Session) -> None:
    """The drop-in on this device, `svd_lowrank` beside it, and `svd_lowrank` on the CPU, where LASER runs it."""
    shape = REHEARSED_SHAPE if session.rehearsal else SHAPE
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    here, case = weight.to(session.device), f"{shape[0]}x{shape[1]} float32, nine rates"
    session.attempt("laser: the drop-in's residual", lambda: _check(here))
    for route, run, seconds in (
        ("drop-in", lambda: by_drop_in(here), session.time),
        ("svd_lowrank, same device", lambda: by_svd_lowrank(here), session.time),
        ("svd_lowrank, CPU", lambda: by_svd_lowrank(weight), functools.partial(_cpu_seconds, session)),
    ):
        session.attempt(f"laser: {route}", functools.partial(_add, session, case, route, run, seconds))


def _add(
    session: Session, case: str, route: str, run: Callable[[], None], seconds: Callable[..., float | None]
) -> None:
    session.add("laser", case, route, seconds(run))


def _check(weight: Tensor) -> None:
    """The drop-in's residual is the least there is (by eigenvalues: an SVD of this size takes minutes)."""
    squares = torch.linalg.eigvalsh(weight.double().mT @ weight.double()).clamp(min=0).flip(0)
    for rate in (1, 8, 9.9):
        rank = int(min(weight.shape) * ((10 - rate) * 0.1))
        residual = float((weight - laser.do_low_rank(weight, (10 - rate) * 0.1).detach()).double().norm())
        least = float(squares[rank:].sum().sqrt())
        assert abs(residual / least - 1) <= 1e-5, f"rate {rate}: residual {residual / least - 1:.1e} over the least"


def _cpu_seconds(session: Session, run: Callable[[], None]) -> float | None:
    start = time.perf_counter()
    run()
    return None if session.rehearsal else time.perf_counter() - start
