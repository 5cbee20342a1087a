"""Eigenvectors of Gram matrices, which truncations and shrinks are made of: divided by products, and solved."""

from __future__ import annotations

import functools
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.session import Session
from benchmarks.spectra import spiked
from lasertri.ops import eigen

SHAPES = ((4096, 16384), (2048, 4096))  # GPT-J's matrices whole, and in eight blocks
REHEARSED_SHAPE, REHEARSED_SOLVED = (211, 499), 64
ROUTES = {"by products": True, "b: eigh": False}


def measure(session: Session) -> None:
    """Both routes in FP64."""
    for rows, columns in (REHEARSED_SHAPE,) if session.rehearsal else SHAPES:
        matrix = spiked(rows, columns).to(session.device)
        gram, exact = (matrix @ matrix.mT).unsqueeze(0), matrix.square().sum()
        for route in ROUTES:
            case = f"n={rows} float64"
            run = functools.partial(_measure_route, session, case, gram, exact, route)
            session.attempt(f"eigenvectors {route} {case}", run)


def _measure_route(session: Session, case: str, gram: Tensor, squares: Tensor, route: str) -> None:
    size = gram.shape[-1]
    solved = REHEARSED_SOLVED if session.rehearsal else eigen.SOLVED
    with patch.multiple(eigen, by_products=lambda _: ROUTES[route], SOLVED=solved):
        [vectors] = eigen.eigenvectors(gram)
        assert float((vectors.mT @ vectors - torch.eye(size).to(vectors)).abs().max()) <= 1e-11, "not orthonormal"
        turned = vectors.mT @ gram[0] @ vectors
        assert float((turned - turned.diagonal().diag()).norm() / squares) <= 1e-11, "no eigenvectors"
        session.add("eigenvectors", case, route, session.time(functools.partial(eigen.eigenvectors, gram)))
