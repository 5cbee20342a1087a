"""Eigenvectors of Gram matrices, of large ones by products."""

import itertools
from contextlib import suppress

import pytest
import torch
from spectra import gaussian, orthonormal, spiked, with_spectrum
from torch.profiler import ProfilerActivity, profile

from lasertri.ops import eigen, products

SIZE = 151


@pytest.fixture
def solved(monkeypatch):
    """Sizes that the solver gets, where all larger ones than 20 are to be divided."""
    monkeypatch.setattr(eigen, "by_products", lambda _: True)
    monkeypatch.setattr(eigen, "SOLVED", 20)
    monkeypatch.setattr(products, "BAND", 40)
    sizes, solve = [], torch.linalg.eigh

    def watched(matrix):
        sizes.append(matrix.shape[-1])
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    return sizes


FALLING = torch.arange(1, SIZE + 1, dtype=torch.float64)
MATRICES = {
    "gaussian": gaussian(SIZE, 2 * SIZE),
    "square": gaussian(SIZE, SIZE),
    "spiked": spiked(SIZE, 3 * SIZE),
    "falling": with_spectrum(1 / FALLING, SIZE, SIZE),
    "steep": with_spectrum(FALLING**-3, SIZE, SIZE),
    "geometric": with_spectrum(0.95 ** (FALLING**1.01), SIZE, SIZE),
    "outlier": with_spectrum(1 + 1e4 * (FALLING == 1) + FALLING / SIZE, SIZE, SIZE),
    "small": 1e-120 * gaussian(SIZE, SIZE),
    "large": 1e120 * gaussian(SIZE, SIZE),
}


def off_diagonal(vectors, gram):
    """What is left of S beside the diagonal, as a share of S."""
    gram = gram / gram.abs().max()
    turned = vectors.mT @ gram @ vectors
    return float((turned - turned.diagonal().diag()).norm() / gram.norm())


@pytest.mark.parametrize("name", MATRICES)
def test_any_spectrum_is_divided_and_as_exact_as_the_solver_in_sigma(name, solved):
    matrix = MATRICES[name]
    gram = matrix @ matrix.mT
    [vectors] = eigen.eigenvectors(gram.tril().unsqueeze(0))
    assert max(solved) <= 20
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-14)
    assert off_diagonal(vectors, gram) < 1e-13
    exact = torch.linalg.svdvals(matrix)
    found, plain = (
        float(((basis.mT @ matrix).norm(dim=1).sort(descending=True).values - exact).abs().max() / exact[0])
        for basis in (vectors, torch.linalg.eigh(gram).eigenvectors)
    )
    assert found < 4 * plain + 1e-14


@pytest.mark.parametrize("name", ["gaussian", "spiked", "falling", "outlier"])
def test_every_truncation_leaves_the_least_there_is(name, solved):
    matrix = MATRICES[name]
    [vectors] = eigen.eigenvectors((matrix @ matrix.mT).unsqueeze(0))
    squares = (vectors.flip(-1).mT @ matrix).square().sum(-1)
    least = torch.linalg.svdvals(matrix).square()
    total = least.sum()
    for rank in range(SIZE):
        assert float((squares[rank:].sum() - least[rank:].sum()).abs() / total) < 1e-13


def test_eigenvalues_ascend_and_every_matrix_of_a_batch_has_its_own(solved):
    matrices = torch.stack([gaussian(50, 70, seed=seed) for seed in range(3)])
    grams = matrices @ matrices.mT
    for vectors, gram in zip(eigen.eigenvectors(grams.tril()), grams, strict=True):
        values = (vectors.mT @ gram @ vectors).diagonal()
        torch.testing.assert_close(values, torch.linalg.eigvalsh(gram), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("matrix", [torch.zeros(SIZE, SIZE, dtype=torch.float64), orthonormal(SIZE, SIZE, seed=5)])
def test_what_no_threshold_divides_is_the_solvers(matrix, solved):
    [vectors] = eigen.eigenvectors((matrix @ matrix.mT).unsqueeze(0))
    assert solved == [SIZE]
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-12)


def test_equal_eigenvalues_are_divided_from_the_others(solved):
    matrix = with_spectrum(1 + 1.0 * (FALLING <= 45), SIZE, SIZE)
    [vectors] = eigen.eigenvectors((matrix @ matrix.mT).unsqueeze(0))
    assert sorted(solved) == [45, 106]
    assert off_diagonal(vectors, matrix @ matrix.mT) < 1e-12


def test_an_eigenvalue_at_the_threshold_takes_more_steps(solved):
    spread = torch.linspace(-3, 3, SIZE, dtype=torch.float64)  # log σ, symmetric but for the middle one
    spread[SIZE // 2] = 1e-11
    matrix = with_spectrum(spread.exp().flip(0), SIZE, SIZE)
    [vectors] = eigen.eigenvectors((matrix @ matrix.mT).unsqueeze(0))
    assert max(solved) < SIZE
    assert off_diagonal(vectors, matrix @ matrix.mT) < 1e-11


@pytest.mark.parametrize("tilt", [0.0, 1e-12, 1e-9, 1e-6, 1e-3])
def test_random_vectors_that_are_hardly_a_basis_cost_no_digits(tilt, solved):
    """Of a matrix that is made from the very same ones, or nearly."""
    generator = torch.Generator().manual_seed(eigen.SEED)
    noise = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(noise + tilt * gaussian(SIZE, SIZE, seed=3)).Q
    matrix = basis * (1 / FALLING)
    [vectors] = eigen.eigenvectors((matrix @ matrix.mT).unsqueeze(0))
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-14)
    assert off_diagonal(vectors, matrix @ matrix.mT) < 1e-13


def test_what_is_rounding_alone_is_the_solvers(solved):
    """Of a matrix of rank 10 the space of the other directions."""
    matrix = gaussian(SIZE, 10)
    eigen.eigenvectors((matrix @ matrix.mT).unsqueeze(0))
    assert max(solved) == SIZE - 10


LOPSIDED = {
    "even": torch.linspace(0.1, 1, SIZE, dtype=torch.float64),
    "one small": 1 - (1 - 1e-8) * (FALLING == 1),
    "one large": 1 + 1e8 * (FALLING == 1) + FALLING / SIZE,
    "a few at a time": torch.exp(-30 * 2.0**-FALLING),
}


@pytest.mark.parametrize("name", LOPSIDED)
@pytest.mark.parametrize("count", [1, 3])
def test_it_takes_no_more_memory_than_it_says(name, count, solved):
    basis = orthonormal(SIZE, SIZE, seed=1)
    grams = (basis * LOPSIDED[name] @ basis.mT).expand(count, -1, -1).contiguous()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        eigen.eigenvectors(grams)
    held = itertools.accumulate(
        event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    )
    square = 8 * SIZE**2
    assert 3 * count * square < count * square + max(held) < eigen.workspace_squares(count) * square


def test_a_nan_is_left_to_the_solver(solved):
    with suppress(torch.linalg.LinAlgError):  # not every solver refuses it
        eigen.eigenvectors(torch.full((2, 30, 30), torch.nan, dtype=torch.float64))
    assert solved == [30]


@pytest.mark.parametrize(("capability", "divided"), [((8, 0), True), ((9, 0), True), ((8, 6), False), ((12, 0), False)])
def test_gpus_that_multiply_fp64_slowly_leave_it_to_the_solver(capability, divided, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert eigen.by_products(torch.device("cuda")) == divided
    assert not eigen.by_products(torch.device("cpu"))
