"""A solver that does not converge is told in a sentence, and another takes its place where that is wanted."""

import pytest
import torch
from faults import give_up_on

from lasertri.errors import NotConvergedError
from lasertri.ops import block_svd, compress_tokens, lowrank_blocks, reduce_blocks, whiten_blocks
from lasertri.ops.converging import converging
from lasertri.ops.laser import laser_factors

CPU = torch.device("cpu")


def gaussian(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight(monkeypatch):
    weight = gaussian(6, 9)
    give_up_on(monkeypatch, [weight])
    return weight


@pytest.mark.parametrize("backend", ["gram", "reference"])
@pytest.mark.parametrize(
    "op",
    [
        block_svd,
        lambda weight, backend: lowrank_blocks(weight, rank=2, backend=backend),
        lambda weight, backend: reduce_blocks(weight, ranks=2, backend=backend),
    ],
)
def test_an_op_says_so_in_a_sentence(weight, op, backend):
    with pytest.raises(NotConvergedError, match=r"can be factored, but linalg\.\w+: .* failed to converge; scale"):
        op(weight, backend=backend)


def give_up(*_, **__):
    raise torch.linalg.LinAlgError("failed to converge")


def test_so_does_a_whitened_step(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    with pytest.raises(NotConvergedError, match="failed to converge; scale them"):
        whiten_blocks(gaussian(6, 4), gaussian(6, 9), rank=2)


def test_so_does_lasers_own_svd(monkeypatch):
    monkeypatch.setattr(torch, "svd_lowrank", give_up)
    with pytest.raises(NotConvergedError, match="failed to converge; scale them"):
        laser_factors(gaussian(6, 9), 2)


def test_another_solver_takes_its_place_and_at_last_one_on_the_cpu():
    tried = []

    def solve(backend, device):
        tried.append((backend, str(device)))
        if len(tried) < 3:
            raise NotConvergedError("not yet")
        return "solved"

    assert converging(solve, "gram", torch.device("meta")) == "solved"
    assert tried == [("gram", "meta"), ("reference", "meta"), ("reference", "cpu")]
    tried.clear()
    with pytest.raises(NotConvergedError, match="no eigensolver and no SVD converges on it"):
        converging(solve, "gram", CPU)
    assert tried == [("gram", "cpu"), ("reference", "cpu")]


def test_tokens_whose_eigensolver_gives_up_are_compressed_by_an_svd(monkeypatch):
    inputs, deltas = gaussian(30, 6).double(), gaussian(30, 4).double()
    expected = compress_tokens(inputs, deltas, most=8)
    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    found = compress_tokens(inputs, deltas, most=8)
    for one, other in (
        (found[1].mT @ found[0], expected[1].mT @ expected[0]),
        (found[0].mT @ found[0], expected[0].mT @ expected[0]),
    ):
        torch.testing.assert_close(one, other)
    monkeypatch.setattr(torch.linalg, "svd", give_up)
    with pytest.raises(NotConvergedError, match="failed to converge; scale them"):
        compress_tokens(inputs, deltas, most=8)
