"""The whitened gradient, which the default edit is made of, at GPT-J's shapes: by products, and by eigenproblems."""

from __future__ import annotations

import functools
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.session import Session
from benchmarks.spectra import tokens
from lasertri import whiten_blocks
from lasertri.ops import whiten

SHAPES = ((2000, 16384, 4096), (2000, 4096, 16384))  # a fold's tokens, m and n
REHEARSED_SHAPE, RANK = (1130, 1140, 1150), 32  # of a fold's step
ROUTES = {"by products": {"cuda", "cpu"}, "b: eigh": set[str]()}


def measure(session: Session) -> None:
    """Both routes in FP32, as a step is made."""
    for count, rows, columns in (REHEARSED_SHAPE,) if session.rehearsal else SHAPES:
        case = f"T={count} {rows}x{columns} rank {RANK} float32"
        sides = [tokens(count, size, seed=seed).to(session.device) for seed, size in enumerate((rows, columns))]
        with patch.object(whiten, "BY_PRODUCTS", set[str]()):
            exact = whiten_blocks(*(side.double() for side in sides), rank=RANK, backend="gram").sigma
        run = functools.partial(_measure_route, session, case, sides, exact)
        for route in ROUTES:
            session.attempt(f"whitening {route} {case}", functools.partial(run, route))


def _measure_route(session: Session, case: str, sides: list[Tensor], exact: Tensor, route: str) -> None:
    deltas, inputs = sides

    def run() -> Tensor:
        return whiten_blocks(deltas, inputs, rank=RANK, precision="float32", backend="gram").sigma

    with patch.object(whiten, "BY_PRODUCTS", ROUTES[route]):
        if ROUTES[route]:
            pairs = whiten.whiten_by_products([deltas[None, None]], inputs[None], RANK, 0.1, torch.float32)
            assert pairs is not None, "products gave up"
        # σ is at most 1; damped by a tenth of the mean, a squared condition of size / 0.1
        allowed = 10 * torch.finfo(torch.float32).eps * max(deltas.shape[1], inputs.shape[1])
        assert float((run() - exact).abs().max()) <= allowed, "σ is off"
        session.add("whiten_blocks", case, route, session.time(run))
