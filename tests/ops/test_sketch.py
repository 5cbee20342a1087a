"""Few rows in place of many tokens: what is lost of the second moments is bounded by what is left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lasertri import LasertriError
from lasertri.ops import compress_tokens


def draw(tokens, columns, rows, *, seed=0, decay=1.0, dtype=torch.float64):
    """X `[T, n]` and Δ `[T, m]` of different scales, their common spectrum falling as i^-decay."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, columns + rows, generator=generator, dtype=torch.float64)
    weights = torch.arange(1, columns + rows + 1, dtype=torch.float64) ** -decay
    mixed = z * weights @ torch.linalg.qr(torch.randn(columns + rows, columns + rows, generator=generator).double()).Q
    return (30 * mixed[:, :columns]).to(dtype), (1e-3 * mixed[:, columns:]).to(dtype)


def normalised(inputs, deltas):
    """Z = [X/‖X‖, Δ/‖Δ‖]."""
    return torch.cat([side.double() / side.double().norm() for side in (inputs, deltas)], dim=1)


@pytest.mark.parametrize("most", [7, 8, 100])
def test_few_tokens_stay_as_they_are(most):
    inputs, deltas = draw(7, 5, 3)
    found = compress_tokens(inputs, deltas, most)
    assert found[0] is inputs
    assert found[1] is deltas


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_as_many_rows_as_there_is_rank_lose_nothing(dtype):
    inputs, deltas = draw(60, 5, 3, dtype=dtype)
    deltas = deltas.float()
    few = compress_tokens(inputs, deltas, 8)
    assert [side.shape for side in few] == [(8, 5), (8, 3)]
    assert [side.dtype for side in few] == [torch.float32 if dtype == torch.float16 else dtype, torch.float32]
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for left in (0, 1):
        for right in (0, 1):
            exact = (inputs, deltas)[left].double().mT @ (inputs, deltas)[right].double()
            found = few[left].double().mT @ few[right].double()
            allowed = 64 * eps * (inputs, deltas)[left].double().norm() * (inputs, deltas)[right].double().norm()
            assert (found - exact).norm() <= allowed


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 50),
    columns=st.integers(1, 12),
    rows=st.integers(1, 12),
    most=st.integers(1, 30),
    decay=st.floats(0, 2),
    seed=st.integers(0, 1000),
)
def test_what_is_lost_is_the_tail(tokens, columns, rows, most, decay, seed):
    """Z's Gram matrix is off by σ²_{s+1}, so G = ΔᵀX by at most that times ‖Δ‖ ‖X‖."""
    inputs, deltas = draw(tokens, columns, rows, seed=seed, decay=decay)
    few = compress_tokens(inputs, deltas, most)
    assert len(few[0]) == len(few[1]) == (tokens if tokens <= most else min(most, columns + rows))
    z = normalised(inputs, deltas)
    sigma = torch.linalg.svdvals(z)
    tail = float(sigma[most].square()) if most < len(sigma) else 0.0
    scale = torch.cat([inputs.norm().expand(columns), deltas.norm().expand(rows)])
    small = torch.cat(few, dim=1) / scale
    lost = z.mT @ z - small.mT @ small
    assert torch.linalg.matrix_norm(lost, 2) <= tail + 1e-12
    assert torch.linalg.eigvalsh(lost).min() >= -1e-12  # nothing is made up
    gradient = few[1].mT @ few[0] - deltas.mT @ inputs
    assert torch.linalg.matrix_norm(gradient, 2) <= (tail + 1e-12) * inputs.norm() * deltas.norm()


@pytest.mark.parametrize("columns", [400, 50])
@pytest.mark.usefixtures("divided")
def test_where_a_gpu_divides_the_eigenproblem_no_more_is_lost(columns, monkeypatch):
    inputs, deltas = draw(60, columns, columns - 10, decay=0.5)
    sizes, solve = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(matrix.shape[-1]) or solve(matrix))
    few = compress_tokens(inputs, deltas, 20)
    assert (max(sizes) <= 8) == (columns == 400), "of rows that are so long, since it takes more memory"
    z, small = normalised(inputs, deltas), torch.cat([few[0] / inputs.norm(), few[1] / deltas.norm()], dim=1)
    lost = torch.linalg.eigvalsh(z.mT @ z - small.mT @ small)
    tail = torch.linalg.svdvals(z)[20].square()
    assert float(lost[-1]) <= tail + 1e-12
    assert float(lost[0]) >= -1e-12


@settings(max_examples=25, deadline=None)
@given(most=st.integers(2, 20), piece=st.integers(1, 25), decay=st.floats(0, 2), seed=st.integers(0, 1000))
def test_pieces_one_after_the_other_lose_no_more_than_their_tails_together(most, piece, decay, seed):
    """Each compression loses at most its own σ²_{s+1}; with frequent directions' shrinkage s of those ≤ ‖Z‖²_F."""
    inputs, deltas = draw(120, 9, 7, seed=seed, decay=decay)
    kept, bound = (inputs[:0], deltas[:0]), torch.zeros(16, 16, dtype=torch.float64)
    for start in range(0, 120, piece):
        kept = tuple(
            torch.cat([old, new[start : start + piece]]) for old, new in zip(kept, (inputs, deltas), strict=True)
        )
        if len(kept[0]) > 2 * most:
            norms = torch.cat([side.norm().expand(side.shape[1]) for side in kept])
            sigma = torch.linalg.svdvals(normalised(*kept))
            tail = float(sigma[most].square()) if most < len(sigma) else 0.0
            bound += (tail + 1e-12) * torch.outer(norms, norms)
            kept = compress_tokens(*kept, most)
    assert len(kept[0]) <= 2 * most
    lost = torch.cat([inputs, deltas], dim=1)
    lost = lost.mT @ lost - torch.cat(kept, dim=1).mT @ torch.cat(kept, dim=1)
    scale = bound.diagonal().sqrt().clamp(min=1e-12)
    worst = torch.linalg.matrix_norm(lost / torch.outer(scale, scale), 2)
    assert worst <= 1 + 1e-6 or not bound.any()
    if not bound.any():
        assert lost.abs().max() <= 1e-9 * inputs.square().sum()


def test_one_piece_after_the_other_keeps_what_matters():
    """Beside the best of so many rows, ten compressions lose little of a spectrum that falls."""
    inputs, deltas = draw(500, 40, 30, decay=1.5)
    kept = inputs[:0], deltas[:0]
    for start in range(0, 500, 50):
        kept = tuple(torch.cat([old, new[start : start + 50]]) for old, new in zip(kept, (inputs, deltas), strict=True))
        kept = compress_tokens(*kept, 30)
    exact, best = deltas.mT @ inputs, compress_tokens(inputs, deltas, 30)
    lost, least = ((side[1].mT @ side[0] - exact).norm() / exact.norm() for side in (kept, best))
    assert least < 0.01
    assert lost <= 3 * least + 0.005


def test_a_side_of_zeros_stays_zero_and_the_other_is_kept():
    inputs, deltas = draw(40, 5, 3)
    kept, nothing = compress_tokens(inputs, torch.zeros_like(deltas), 6)
    assert not nothing.any()
    torch.testing.assert_close(kept.mT @ kept, inputs.mT @ inputs)
    assert not any(side.any() for side in compress_tokens(0 * inputs, 0 * deltas, 6))


def test_the_same_tokens_give_the_same_bits():
    inputs, deltas = draw(40, 5, 3)
    for one, two in zip(compress_tokens(inputs, deltas, 4), compress_tokens(inputs, deltas, 4), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("deltas", "most", "message"),
    [
        (torch.ones(4, 2), 0, "expected most to be an integer of at least 1, got 0"),
        (torch.ones(4, 2), True, "at least 1, got True"),
        (torch.ones(3, 2), 2, "expected the same tokens twice on one device, got 4 on cpu and 3 on cpu"),
        (torch.ones(4), 2, r"deltas \[tokens, size\], got \[4\]"),
        (torch.full((4, 2), torch.nan), 2, "NaN or Inf in `deltas`"),
    ],
)
def test_what_is_no_rows_of_the_same_tokens_is_refused(deltas, most, message):
    with pytest.raises(LasertriError, match=message):
        compress_tokens(torch.ones(4, 2), deltas, most)
