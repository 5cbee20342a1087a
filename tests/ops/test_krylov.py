"""Block Krylov iteration where a matrix has less to find than the block is wide."""

import pytest
import torch
from spectra import gaussian

from lasertri.ops import krylov
from lasertri.ops.krylov import leading_vectors_by

SIZE, LENGTH, RANK = 130, 140, 2


def found(stack):
    """The vectors of every matrix of a stack, and the passes it took."""
    passes = []

    def pass_over(block):
        passes.append(block)
        return stack @ (stack.mT @ block)

    vectors = leading_vectors_by(pass_over, stack.square().sum((-2, -1)), SIZE, RANK, most=SIZE // 2)
    return vectors, len(passes)


FIRST_ROW, FIRST_COLUMN = (torch.eye(size, dtype=torch.float64)[:1] for size in (SIZE, LENGTH))
EXHAUSTED = {
    "one row": FIRST_ROW.mT @ gaussian(1, LENGTH),
    "one column": gaussian(SIZE, 1) @ FIRST_COLUMN,
    "one value": FIRST_ROW.mT @ FIRST_COLUMN,
    "rank 1": gaussian(SIZE, 1) @ gaussian(1, LENGTH, seed=1),
    "rank 5": gaussian(SIZE, 5) @ gaussian(5, LENGTH, seed=1),
    "zero": torch.zeros(SIZE, LENGTH, dtype=torch.float64),
}


def assert_leading(vectors, matrix):
    sigma = torch.linalg.svdvals(matrix)
    count = int((sigma[:RANK] > 1e-9 * sigma[0]).sum())
    torch.testing.assert_close((vectors.mT @ matrix).norm(dim=-1), sigma[:RANK], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(vectors[:, :count].mT @ vectors[:, :count], torch.eye(count).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", EXHAUSTED)
def test_what_a_block_holds_all_of_is_found_at_once(name):
    stack = EXHAUSTED[name].expand(64, -1, -1)
    vectors, passes = found(stack)
    assert passes <= 3, "for the first block, for its images, to see that there is no more"
    for each in vectors[::63]:
        assert_leading(each, stack[0])


@pytest.mark.parametrize("name", EXHAUSTED)
def test_it_stays_found_while_another_matrix_is_not(name):
    slow = gaussian(SIZE, LENGTH) * torch.logspace(0, -1.5, LENGTH)
    alone, passes = found(slow[None])
    both, together = found(torch.stack([EXHAUSTED[name], slow]))
    assert together == passes > 3
    assert_leading(both[0], EXHAUSTED[name])
    torch.testing.assert_close(both[1].abs(), alone[0].abs())


@pytest.mark.parametrize("name", [*EXHAUSTED, "slow"])
def test_looking_less_often_takes_few_more_passes_and_finds_the_same(name, monkeypatch):
    stack = EXHAUSTED.get(name, gaussian(SIZE, LENGTH) * torch.logspace(0, -1.5, LENGTH))[None]
    _, passes = found(stack)
    monkeypatch.setitem(krylov.LOOKS, "cpu", 3)
    sizes, solve = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(matrix.shape[-1]) or solve(matrix))
    seldom, more = found(stack)
    assert_leading(seldom[0], stack[0])
    assert passes <= more <= passes + 5
    width = RANK + krylov.MARGIN
    last = SIZE // 2 // width
    assert sizes == [width * number for number in range(1, more) if number % 3 == 0 or number >= last - 1]


def test_columns_that_say_nearly_the_same_are_a_basis_all_the_same():
    block = gaussian(SIZE, 3) @ gaussian(3, 9, seed=1) + 1e-5 * gaussian(SIZE, 9, seed=2)
    basis = torch.linalg.qr(gaussian(SIZE, 7, seed=3)).Q
    columns = krylov._beyond(basis, block)
    together = torch.cat([basis, columns], dim=1)
    torch.testing.assert_close(together.mT @ together, torch.eye(16).double(), rtol=0, atol=1e-13)
    left = block - together @ (together.mT @ block)
    assert float(left.norm() / block.norm()) < 1e-11


def test_columns_that_add_nothing_are_none():
    basis = torch.linalg.qr(gaussian(SIZE, 40, seed=3)).Q
    columns = krylov._beyond(basis, basis @ gaussian(40, 9) + gaussian(SIZE, 3, seed=7) @ gaussian(3, 9, seed=8))
    kept = columns[:, columns.norm(dim=0) > 0]
    assert kept.shape[1] == 3
    together = torch.cat([basis, kept], dim=1)
    torch.testing.assert_close(together.mT @ together, torch.eye(43).double(), rtol=0, atol=1e-12)


def test_rounding_of_long_columns_costs_none_of_the_others():
    size, generator = 16384, torch.Generator().manual_seed(1)
    block = torch.full((size, 24), 1 / 3, dtype=torch.float64) * torch.randn(24, generator=generator).double()
    block[:, 12:] += 1e-4 * torch.randn(size, 12, generator=generator).double()
    basis = torch.eye(size, 20, dtype=torch.float64)
    columns = krylov._beyond(basis, block)
    together = torch.cat([basis, columns], dim=1)
    left = block - together @ (together.mT @ block)
    assert float(left.norm() / block.norm()) < 1e-9
